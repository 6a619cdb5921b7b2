"""Policy losses that choose tokens: by divergence (DPPO), by covariance with the advantage
(Clip-Cov, KL-Cov), by what followed them (FIPO).

B responses, T tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlvr_decode.training.objectives.inputs import LossInputs
from rlvr_decode.training.objectives.kl import MAX_LOG_RATIO
from rlvr_decode.training.objectives.policy_losses import Surrogate, clipped, log_ratio


def dppo(
    inputs: LossInputs, *, divergence: str, limit: float, cap: float, anchor: str
) -> Surrogate:
    """DPPO: −sg(min(r, cap))·A·log π, and no gradient on tokens that have moved too far outwards.

    With μ the anchor's and π the present probability of the sampled token, a token is masked when
    it moves the way A pushes it (π > μ for A > 0, π < μ for A < 0) and its binary divergence from
    the anchor exceeds `limit`: |π − μ| ("tv") or KL(μ‖π) of the coin "this token or another"
    ("kl") (arXiv 2602.04879). r = π/μ; anchor "rollout" or "old" says whose μ.
    """
    name = {"rollout": "rollout_logp_BT", "old": "old_logp_BT"}[anchor]
    from_anchor = replace(inputs, old_logp_BT=inputs.require(name))
    advantages_BT = inputs.require("advantages_BT")
    with torch.no_grad():
        p_BT, anchor_BT = inputs.logp_BT.exp(), from_anchor.old_logp_BT.exp()
        gap_BT = p_BT - anchor_BT
        moved_BT = gap_BT.abs() if divergence == "tv" else _coin_kl(anchor_BT, p_BT)
        masked_BT = (gap_BT * advantages_BT > 0) & (moved_BT > limit)
        weight_BT = log_ratio(from_anchor).exp().clamp(max=cap).masked_fill(masked_BT, 0.0)
    return Surrogate(-weight_BT * advantages_BT * inputs.logp_BT, masked_BT)


def clip_cov(inputs: LossInputs, *, clip_low: float, clip_high: float) -> Surrogate:
    """Clip-Cov: PPO's clip, and no loss on the selected tokens (arXiv 2505.22617)."""
    surrogate = clipped(inputs, clip_low=clip_low, clip_high=clip_high)
    selected_BT = inputs.require("selected_BT")
    return Surrogate(
        surrogate.loss_BT.masked_fill(selected_BT, 0.0), surrogate.clipped_BT | selected_BT
    )


def kl_cov(inputs: LossInputs, *, coef: float) -> Surrogate:
    """KL-Cov: −rA, plus coef·|log r| on the selected tokens (arXiv 2505.22617)."""
    log_ratio_BT = log_ratio(inputs)
    loss_BT = -log_ratio_BT.exp() * inputs.require("advantages_BT")
    penalty_BT = coef * log_ratio_BT.abs() * inputs.require("selected_BT")
    return Surrogate(loss_BT + penalty_BT, torch.zeros_like(inputs.mask_BT))


def select_random(inputs: LossInputs, *, fraction: float, low: float, high: float) -> Tensor:
    """Clip-Cov's tokens (bool): a random `fraction` of all tokens, at least one, drawn from those
    with low < covariance < high by torch's global generator."""
    covariance_BT = covariance(inputs)
    candidates = ((covariance_BT > low) & (covariance_BT < high) & inputs.mask_BT).nonzero()
    order = torch.randperm(len(candidates))[: _count(inputs, fraction)].to(candidates.device)
    selected_BT = torch.zeros_like(inputs.mask_BT)
    selected_BT[tuple(candidates[order].T)] = True
    return selected_BT


def select_largest(inputs: LossInputs, *, fraction: float) -> Tensor:
    """KL-Cov's tokens (bool): the `fraction` of all tokens with the largest covariance, at least
    one. `fraction` is a fraction: 0.002 is 0.2 %."""
    ranked = covariance(inputs).masked_fill(~inputs.mask_BT, -torch.inf).flatten()
    count = min(_count(inputs, fraction), int(inputs.mask_BT.sum()))
    selected_BT = torch.zeros_like(inputs.mask_BT).flatten()
    selected_BT[ranked.topk(count).indices] = True
    return selected_BT.view_as(inputs.mask_BT)


def covariance(inputs: LossInputs) -> Tensor:
    """(A − Ā)·(log π_old − its mean) per token, means over the counted tokens of the batch.

    Of the policy at the start of the update, so that the choice is one of the whole batch and
    micro-batches add up; the released code takes the present policy within a micro-batch.
    """
    advantages_BT = inputs.require("advantages_BT")
    counted_advantages = advantages_BT[inputs.mask_BT]
    counted_logp = inputs.old_logp_BT[inputs.mask_BT]
    return (advantages_BT - counted_advantages.mean()) * (inputs.old_logp_BT - counted_logp.mean())


def fipo(
    inputs: LossInputs,
    *,
    clip_low: float,
    clip_high: float,
    half_life: float,
    weight_low: float,
    weight_high: float,
    outlier: float,
) -> Surrogate:
    """FIPO: DAPO's loss with each token's advantage scaled by what followed it (arXiv 2603.19835).

    f_t = clip(exp(Σ_{k≥t} γ^(k−t)·log r_k), weight_low, weight_high) with γ = 2^(−1/half_life),
    detached: credit grows where the update favours the continuation. Tokens with A < 0 and
    r > outlier are left out of the sum and keep f = 1.
    """
    advantages_BT = inputs.require("advantages_BT")
    with torch.no_grad():
        log_ratio_BT = log_ratio(inputs)
        outlier_BT = (advantages_BT < 0) & (log_ratio_BT.exp() > outlier)
        future_BT = discounted_future(
            log_ratio_BT.masked_fill(outlier_BT, 0.0), discount=2 ** (-1 / half_life)
        )
        weight_BT = future_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        weight_BT = weight_BT.clamp(weight_low, weight_high).masked_fill(outlier_BT, 1.0)
    weighted = replace(inputs, advantages_BT=advantages_BT * weight_BT)
    return clipped(weighted, clip_low=clip_low, clip_high=clip_high)


def discounted_future(x_BT: Tensor, *, discount: float) -> Tensor:
    """Σ_{k≥t} discount^(k−t)·x_k, by doubling: log₂ T steps instead of T."""
    total_BT, reach = x_BT, 1
    while reach < x_BT.shape[1]:
        ahead_BT = torch.nn.functional.pad(total_BT[:, reach:], (0, reach))
        total_BT, reach = total_BT + discount**reach * ahead_BT, 2 * reach
    return total_BT


def _coin_kl(p_BT: Tensor, q_BT: Tensor) -> Tensor:
    """KL between coins that land heads with probabilities p and q."""
    tiny = torch.finfo(p_BT.dtype).tiny
    heads_BT = torch.xlogy(p_BT, p_BT / q_BT.clamp(min=tiny))
    tails_BT = torch.xlogy(1 - p_BT, (1 - p_BT) / (1 - q_BT).clamp(min=tiny))
    return heads_BT + tails_BT


def _count(inputs: LossInputs, fraction: float) -> int:
    return max(1, int(fraction * int(inputs.mask_BT.sum())))
