"""Every preset, with several steps per batch, teaches a tabular policy to answer right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlvr_decode.training.objectives import OBJECTIVES, LossInputs

PROMPTS, GROUP, TOKENS, VOCABULARY = 8, 8, 3, 5


def right_first_token(logits_TV: torch.Tensor) -> float:
    return logits_TV[0].softmax(0)[0].item()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_right_answer_becomes_more_likely(name):
    """One table of logits; a response is right if its first token is 0 (20 % at the start)."""
    torch.manual_seed(0)
    objective = OBJECTIVES[name]()
    logits_TV = torch.zeros(TOKENS, VOCABULARY, requires_grad=True)
    optimizer = torch.optim.Adam([logits_TV], lr=0.05)
    groups = torch.arange(PROMPTS).repeat_interleave(GROUP)

    def logprobs(tokens_BT: torch.Tensor) -> torch.Tensor:
        table = logits_TV.log_softmax(-1)
        return torch.stack([table[t][tokens_BT[:, t]] for t in range(TOKENS)], dim=1)

    for _ in range(15):
        chances = logits_TV.detach().softmax(-1)
        tokens_BT = torch.multinomial(chances, PROMPTS * GROUP, replacement=True).T
        old = logprobs(tokens_BT).detach()
        batch = objective.prepare(
            LossInputs(
                logp_BT=old,
                old_logp_BT=old,
                rollout_logp_BT=old,
                mask_BT=torch.ones_like(old, dtype=torch.bool),
                rewards_B=(tokens_BT[:, 0] == 0).float(),
                greedy_rewards_B=(logits_TV[0].argmax() == 0).float().expand(len(groups)),
                group_B=groups,
            )
        )
        for mini in batch.mini_batches(PROMPTS // 2):
            for micro in mini.split(GROUP):
                rows = micro.require("row_B")
                objective(replace(micro, logp_BT=logprobs(tokens_BT[rows]))).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert right_first_token(logits_TV) > 0.35
