"""Rollout correction: weights for tokens that another program sampled.

The rollout engine and the trainer disagree a little on log p of the same weights. A detached
weight ρ = π_old(trainer) / π(rollout engine) on the policy loss makes up for it, bounded to
[low, high] either by truncation (TIS) or by giving weight 0 outside (MIS, IcePop); per token, or
for the whole response as the product over its tokens.

B responses, T tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rlvr_decode.training.objectives.inputs import LossInputs

CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


class Correction(NamedTuple):
    """weight_BT is the factor on the loss; outside_BT says where ρ left [low, high] (bool)."""

    weight_BT: Tensor
    outside_BT: Tensor


def rollout_correction(inputs: LossInputs, *, mode: str, low: float, high: float) -> Correction:
    """ρ bounded to [low, high] by one of CORRECTIONS other than "none"."""
    level, bound = mode.split("_")
    gap_BT = inputs.old_logp_BT - inputs.require("rollout_logp_BT")
    if level == "sequence":
        gap_BT = gap_BT.sum(-1, keepdim=True).expand_as(gap_BT)
    ratio_BT = gap_BT.exp()
    outside_BT = (ratio_BT < low) | (ratio_BT > high)
    if bound == "truncate":
        return Correction(ratio_BT.clamp(low, high), outside_BT)
    return Correction(ratio_BT.masked_fill(outside_BT, 0.0), outside_BT)
