"""Policy losses: what one token contributes, given its advantage.

Each takes a prepared batch and returns losses to minimise and where the trust region took the
gradient away. Below r = π_θ/π_old of the sampled token, A its advantage, sg(·) no gradient.
Sequence-level losses return the same number on every token of a response.

B responses, T tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rlvr_decode.training.objectives.inputs import LossInputs
from rlvr_decode.training.objectives.kl import MAX_LOG_RATIO


class Surrogate(NamedTuple):
    """loss_BT to minimise; clipped_BT (bool) marks tokens whose gradient the trust region cut."""

    loss_BT: Tensor
    clipped_BT: Tensor


def reinforce(inputs: LossInputs) -> Surrogate:
    """−A·log π: the policy gradient, on-policy only (Williams 1992)."""
    loss_BT = -inputs.require("advantages_BT") * inputs.logp_BT
    return Surrogate(loss_BT, torch.zeros_like(inputs.mask_BT))


def clipped(
    inputs: LossInputs, *, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Surrogate:
    """PPO: −min(rA, clip(r, 1−clip_low, 1+clip_high)·A) (arXiv 1707.06347, eq. 7).

    With `dual_clip` c > 1 the loss of a token with A < 0 is at most −cA (arXiv 1912.09729).
    """
    ratio_BT, advantages_BT = log_ratio(inputs).exp(), inputs.require("advantages_BT")
    loss_BT, clipped_BT = _clip(ratio_BT, advantages_BT, clip_low, clip_high)
    if dual_clip is not None:
        far_BT = (advantages_BT < 0) & (ratio_BT > dual_clip)
        loss_BT = torch.where(far_BT, -dual_clip * advantages_BT, loss_BT)
        clipped_BT = clipped_BT | far_BT
    return Surrogate(loss_BT, clipped_BT)


def gspo(inputs: LossInputs, *, clip_low: float, clip_high: float) -> Surrogate:
    """GSPO: PPO's clip on the sequence ratio s = exp(mean_t log r_t) (arXiv 2507.18071, eq. 5)."""
    ratio_BT = response_mean(log_ratio(inputs), inputs).exp()
    return _clip(ratio_BT, inputs.require("advantages_BT"), clip_low, clip_high)


def gspo_token(inputs: LossInputs, *, clip_low: float, clip_high: float) -> Surrogate:
    """GSPO-token: sg(s)·π/sg(π) per token, GSPO's gradient with room for token advantages
    (arXiv 2507.18071, eq. 13)."""
    sequence_BT = response_mean(log_ratio(inputs), inputs).detach()
    ratio_BT = (sequence_BT + inputs.logp_BT - inputs.logp_BT.detach()).exp()
    return _clip(ratio_BT, inputs.require("advantages_BT"), clip_low, clip_high)


def gmpo(inputs: LossInputs, *, clip: float) -> Surrogate:
    """GMPO: −A·(Π_t r_t)^(1/|y|), the geometric mean of ratios whose logarithm is cut one-sidedly
    to ±clip, above where A > 0 and below where A < 0 (arXiv 2507.20673)."""
    log_ratio_BT, advantages_BT = log_ratio(inputs), inputs.require("advantages_BT")
    sign_BT = advantages_BT.sign()
    bounded_BT = sign_BT * torch.minimum(sign_BT * log_ratio_BT, torch.full_like(sign_BT, clip))
    loss_BT = -advantages_BT * response_mean(bounded_BT, inputs).exp()
    return Surrogate(loss_BT, sign_BT * log_ratio_BT > clip)


def cispo(inputs: LossInputs, *, cap: float) -> Surrogate:
    """CISPO: −sg(min(r, cap))·A·log π; every token keeps a gradient (arXiv 2506.13585, eq. 4)."""
    ratio_BT = log_ratio(inputs).exp().detach()
    loss_BT = -ratio_BT.clamp(max=cap) * inputs.require("advantages_BT") * inputs.logp_BT
    return Surrogate(loss_BT, ratio_BT > cap)


def sapo(inputs: LossInputs, *, temperature_pos: float, temperature_neg: float) -> Surrogate:
    """SAPO: −(4/τ)·σ(τ(r−1))·A, a soft gate with τ by the sign of A (arXiv 2511.20347)."""
    advantages_BT = inputs.require("advantages_BT")
    temperature_BT = _where(advantages_BT > 0, temperature_pos, temperature_neg, advantages_BT)
    gate_BT = torch.sigmoid(temperature_BT * (log_ratio(inputs).exp() - 1))
    loss_BT = -4 / temperature_BT * gate_BT * advantages_BT
    return Surrogate(loss_BT, torch.zeros_like(inputs.mask_BT))


def vespo(
    inputs: LossInputs, *, k_pos: float, lambda_pos: float, k_neg: float, lambda_neg: float
) -> Surrogate:
    """VESPO: −sg(φ(W))·A·log π with φ(W) = W^k·e^(λ(1−W)), W = Π_t r_t of the whole response and
    (k, λ) by the sign of A (arXiv 2602.10693). φ(1) = 1; φ vanishes at 0 and ∞."""
    advantages_BT = inputs.require("advantages_BT")
    log_weight_BT = log_ratio(inputs).detach().sum(-1, keepdim=True)
    # Below, φ is 0 in float32 anyway; above, exp stays finite and φ underflows to 0.
    log_weight_BT = log_weight_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    k_BT = _where(advantages_BT >= 0, k_pos, k_neg, advantages_BT)
    lambda_BT = _where(advantages_BT >= 0, lambda_pos, lambda_neg, advantages_BT)
    gate_BT = (k_BT * log_weight_BT + lambda_BT * (1 - log_weight_BT.exp())).exp()
    loss_BT = -gate_BT * advantages_BT * inputs.logp_BT
    return Surrogate(loss_BT, torch.zeros_like(inputs.mask_BT))


def listwise(inputs: LossInputs, *, clip: float, clip_mode: str) -> Surrogate:
    """LPO: c·δ with δ = log r and c = −A the coefficient of the projection (arXiv 2605.06139, D.3).

    clip_mode "hard" cuts δ to [log(1−clip), log(1+clip)], gradient and all; "pessimistic" takes
    the larger of the cut and the uncut loss, so that a token outside can come back; "none" cuts
    nothing (TPO).
    """
    log_ratio_BT, coefficients_BT = log_ratio(inputs), -inputs.require("advantages_BT")
    loss_BT = coefficients_BT * log_ratio_BT
    if clip_mode == "none":
        return Surrogate(loss_BT, torch.zeros_like(inputs.mask_BT))
    bounded_BT = log_ratio_BT.clamp(math.log(1 - clip), math.log(1 + clip))
    outside_BT = bounded_BT != log_ratio_BT
    if clip_mode == "hard":
        return Surrogate(coefficients_BT * bounded_BT, outside_BT)
    worse_BT = coefficients_BT * bounded_BT > loss_BT
    return Surrogate(torch.maximum(loss_BT, coefficients_BT * bounded_BT), outside_BT & worse_BT)


def log_ratio(inputs: LossInputs) -> Tensor:
    """log r per token, bounded so that its exponential is finite.

    Both log-probs are 0 where the mask is (`batch.counted_only`), so their difference is too.
    """
    return (inputs.logp_BT - inputs.old_logp_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def response_mean(x_BT: Tensor, inputs: LossInputs) -> Tensor:
    """The mean over each response's counted tokens, on every position."""
    total_B = x_BT.masked_fill(~inputs.mask_BT, 0.0).sum(-1, keepdim=True)
    return (total_B / inputs.mask_BT.sum(-1, keepdim=True).clamp(min=1)).expand_as(x_BT)


def _where(condition: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    return torch.full_like(like, no).masked_fill(condition, yes)


def _clip(ratio_BT: Tensor, advantages_BT: Tensor, clip_low: float, clip_high: float) -> Surrogate:
    bounded_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    gain_BT = torch.minimum(ratio_BT * advantages_BT, bounded_BT * advantages_BT)
    above_BT = (advantages_BT > 0) & (ratio_BT > 1 + clip_high)
    below_BT = (advantages_BT < 0) & (ratio_BT < 1 - clip_low)
    return Surrogate(-gain_BT, above_BT | below_BT)
