"""MRPO's reward for sampled responses, from the hidden states that their tokens were drawn from.

The sampler's own forward passes have those; of rollouts that come without them, they are computed
again by teacher forcing, for one part of the batch at a time, so memory is bounded by `rows`.

B responses, T response tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlvr_decode.training.rank.mrpo import mrpo_rewards
from rlvr_decode.training.rank.spectral import trajectory_rank
from rlvr_decode.training.rollout.padding import positions
from rlvr_decode.training.rollout.rollout import Rollouts


@dataclass(frozen=True, kw_only=True, slots=True)
class RankReward:
    """What a right answer earns for the spread of its hidden states (arXiv 2602.02545).

    alpha and window are the paper's; layer, stride, norm, power and centring are not known from it.
    """

    alpha: float = 0.5
    """A right answer earns from 1 to 1 + alpha; 0 only measures."""
    norm: str = "bound"
    """How a rank becomes a number from 0 to 1: bound, group or batch (`mrpo.normalised_rank`)."""
    layer: int = -1
    """As `output_hidden_states` counts; −1 is the last, after the final norm."""
    window: int = 64
    stride: int = 32
    power: int = 1
    center: bool = True
    rows: int = 64
    """Responses per part."""


class RankedRewards(NamedTuple):
    """Shaped rewards, and the trajectory ranks they come from."""

    rewards_B: Tensor
    rank_B: Tensor


def ranked_rewards(
    model: PreTrainedModel,
    rollouts: Rollouts,
    correct_B: Tensor,
    group_B: Tensor,
    settings: RankReward,
) -> RankedRewards:
    """1[correct] · (1 + alpha · NormRank) for every response; what is left of `judge` for MRPO."""
    rank_B = response_ranks(model, rollouts, settings)
    rewards_B = mrpo_rewards(
        correct_B,
        rank_B,
        rollouts.mask_BT.sum(1),
        group_B,
        alpha=settings.alpha,
        norm=settings.norm,
        window=settings.window,
        center=settings.center,
    )
    return RankedRewards(rewards_B, rank_B)


def response_ranks(model: PreTrainedModel, rollouts: Rollouts, settings: RankReward) -> Tensor:
    """The least effective rank over windows of each response's hidden states, rank_B, float64.

    Of rollouts with hidden states no model is run; they are taken to be of `settings.layer`.
    """
    parts = [
        trajectory_rank(
            hidden_bTD,
            mask_bT,
            window=settings.window,
            stride=settings.stride,
            power=settings.power,
            center=settings.center,
        )
        for hidden_bTD, mask_bT in hidden_parts(
            model, rollouts, layer=settings.layer, rows=settings.rows
        )
    ]
    return torch.cat(parts)


def hidden_parts(
    model: PreTrainedModel, rollouts: Rollouts, *, layer: int, rows: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states and mask of `rows` responses at a time: the sampler's, or computed again."""
    for rows_b in torch.split(torch.arange(len(rollouts.texts)), rows):
        part = rollouts.select(rows_b)
        hidden_bTD = part.hidden_BTD
        if hidden_bTD is None:
            hidden_bTD = response_hidden(model, part, layer=layer)
        yield hidden_bTD, part.mask_BT


@torch.no_grad()
def response_hidden(model: PreTrainedModel, rollouts: Rollouts, *, layer: int = -1) -> Tensor:
    """The hidden states that the response's tokens are drawn from, hidden_BTD."""
    tokens = rollouts.response_BT.shape[1]
    output = model(
        input_ids=torch.cat([rollouts.prompt_BP, rollouts.response_BT], dim=1),
        **positions(torch.cat([rollouts.prompt_mask_BP, rollouts.mask_BT], dim=1)),
        output_hidden_states=True,
        logits_to_keep=1,
        use_cache=False,
    )
    hidden_BTD: Tensor = output.hidden_states[layer][:, -tokens - 1 : -1]
    return hidden_BTD
