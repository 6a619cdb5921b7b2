"""Ranks of sampled responses: the right hidden states, the sampler's or again, in any parts."""

from dataclasses import replace

import pytest
import torch

from rlvr_decode.training.policy.model import open_model
from rlvr_decode.training.rank.ranks import (
    RankReward,
    ranked_rewards,
    response_hidden,
    response_ranks,
)
from rlvr_decode.training.rank.spectral import effective_rank
from rlvr_decode.training.rollout.rollout import TransformersRollout


def sampled(micro_base, layer=None):
    """Two prompts of different lengths, so one is padded, and responses of different lengths."""
    model, tokenizer = open_model(micro_base)
    engine = TransformersRollout(model=model, tokenizer=tokenizer, layer=layer)
    prompts = ["12+3=?\n", "7\n"]
    return model, engine.sample(prompts, group=6, max_new_tokens=20, temperature=1.0, seed=3)


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("kept", [True, False], ids=["sampler", "again"])
def test_each_token_has_the_state_it_was_drawn_from(micro_base, layer, kept) -> None:
    model, rollouts = sampled(micro_base, layer if kept else None)
    hidden_BTD = rollouts.hidden_BTD if kept else response_hidden(model, rollouts, layer=layer)
    assert len({int(mask.sum()) for mask in rollouts.mask_BT}) > 3
    for b in range(12):
        prompt = rollouts.prompt_BP[b][rollouts.prompt_mask_BP[b]]
        response = rollouts.response_BT[b][rollouts.mask_BT[b]]
        with torch.no_grad():
            output = model(torch.cat([prompt, response])[None], output_hidden_states=True)
        expected_TD = output.hidden_states[layer][0, len(prompt) - 1 : -1]
        torch.testing.assert_close(
            hidden_BTD[b, : len(response)], expected_TD, rtol=1e-4, atol=1e-5
        )


def test_ranks_of_kept_states_run_no_model(micro_base) -> None:
    model, rollouts = sampled(micro_base, layer=-1)
    settings = RankReward(window=8, stride=4, rows=5)
    again_B = response_ranks(model, replace(rollouts, hidden_BTD=None), settings)
    model.forward = None
    torch.testing.assert_close(
        response_ranks(model, rollouts, settings), again_B, rtol=1e-4, atol=1e-4
    )


def test_ranks_do_not_depend_on_the_parts(micro_base) -> None:
    model, rollouts = sampled(micro_base)
    whole_B = response_ranks(model, rollouts, RankReward(window=8, stride=4))
    parts_B = response_ranks(model, rollouts, RankReward(window=8, stride=4, rows=5))
    torch.testing.assert_close(parts_B, whole_B, rtol=1e-4, atol=1e-4)
    hidden_TD = response_hidden(model, rollouts)[3][rollouts.mask_BT[3]]
    starts = range(0, max(1, len(hidden_TD) - 7), 4)
    least = min(float(effective_rank(hidden_TD[start : start + 8])) for start in starts)
    torch.testing.assert_close(float(whole_B[3]), least, rtol=1e-4, atol=1e-4)


def test_right_answers_earn_more_for_a_higher_rank(micro_base) -> None:
    model, rollouts = sampled(micro_base)
    correct_B = torch.arange(12) % 3 == 0
    group_B = torch.arange(12) // 6
    settings = RankReward(alpha=0.4, window=8, stride=4, norm="batch")
    rewards_B, rank_B = ranked_rewards(model, rollouts, correct_B, group_B, settings)
    assert rewards_B[~correct_B].tolist() == [0.0] * 8
    right_B, ranks_B = rewards_B[correct_B], rank_B[correct_B]
    share_B = (ranks_B - ranks_B.min()) / (ranks_B.max() - ranks_B.min())
    torch.testing.assert_close(right_B, (1 + 0.4 * share_B).float())
    assert len(set(right_B.tolist())) > 1
