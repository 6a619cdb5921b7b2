"""Policy losses: what one token contributes, given its advantage.

Each takes a prepared batch and returns losses to minimise and where it stopped the gradient. Below
r = π_θ/π_old of the sampled token, A its advantage, sg(·) no gradient.

B responses, T tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlvr_decode.training.objectives.inputs import LossInputs
from rlvr_decode.training.objectives.kl import MAX_LOG_RATIO


class Surrogate(NamedTuple):
    """loss_BT to minimise; clipped_BT (bool) marks tokens whose gradient the trust region cut."""

    loss_BT: Tensor
    clipped_BT: Tensor


def clipped(inputs: LossInputs, *, clip_low: float, clip_high: float) -> Surrogate:
    """PPO: −min(rA, clip(r, 1−clip_low, 1+clip_high)·A) (arXiv 1707.06347, eq. 7)."""
    return _clip(log_ratio(inputs).exp(), inputs.require("advantages_BT"), clip_low, clip_high)


def log_ratio(inputs: LossInputs) -> Tensor:
    """log r per token, 0 where the mask is, bounded so that its exponential is finite."""
    log_ratio_BT = (inputs.logp_BT - inputs.old_logp_BT).masked_fill(~inputs.mask_BT, 0.0)
    return log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _clip(ratio_BT: Tensor, advantages_BT: Tensor, clip_low: float, clip_high: float) -> Surrogate:
    bounded_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    gain_BT = torch.minimum(ratio_BT * advantages_BT, bounded_BT * advantages_BT)
    above_BT = (advantages_BT > 0) & (ratio_BT > 1 + clip_high)
    below_BT = (advantages_BT < 0) & (ratio_BT < 1 - clip_low)
    return Surrogate(-gain_BT, above_BT | below_BT)
