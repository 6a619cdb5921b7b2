"""What objectives teach a tabular policy: to answer right, and how narrowly."""

from __future__ import annotations

import math
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
                bonus_B=torch.zeros(len(groups)),
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


def right_of_twenty(name, seed):
    """One token, ten of twenty are right: the chance of them, and the entropy they have lost."""
    torch.manual_seed(seed)
    objective = OBJECTIVES[name]()
    logits_V = torch.zeros(20, requires_grad=True)
    groups = torch.arange(4).repeat_interleave(8)
    for _ in range(20):
        tokens_B = torch.multinomial(logits_V.detach().softmax(0), len(groups), replacement=True)
        logp_BT = logits_V.log_softmax(0)[tokens_B][:, None]
        inputs = LossInputs(
            logp_BT=logp_BT,
            old_logp_BT=logp_BT.detach(),
            mask_BT=torch.ones_like(logp_BT, dtype=torch.bool),
            rewards_B=(tokens_B < 10).float(),
            group_B=groups,
        )
        (gradient_V,) = torch.autograd.grad(objective(inputs).loss, logits_V)
        logits_V = (logits_V - 2 * gradient_V).detach().requires_grad_()
    right_R = logits_V.detach().softmax(0)[:10]
    share_R = right_R / right_R.sum()
    return right_R.sum().item(), math.log(10) + (share_R * share_R.log()).sum().item()


def test_mistakes_teach_without_choosing_among_right_answers():
    """PSR narrows right answers to those it met; NSR and W-REINFORCE keep them (2506.01347)."""
    found = {
        name: torch.tensor([right_of_twenty(name, seed) for seed in range(8)]).mean(0)
        for name in ("psr", "nsr", "w_reinforce", "grpo_n", "grpo")
    }
    assert all(chance > 0.8 for chance, _ in found.values())
    lost = {name: entropy.item() for name, (_, entropy) in found.items()}
    assert max(lost["nsr"], lost["grpo_n"]) < 1e-5
    assert lost["w_reinforce"] < 0.01
    assert min(lost["psr"], lost["grpo"]) > 0.03
