"""What every objective reports, as sums over the batch's counts so that micro-batches add up.

B responses, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlvr_decode.training.objectives.inputs import LossInputs
from rlvr_decode.training.objectives.kl import k3
from rlvr_decode.training.objectives.policy_losses import Surrogate, log_ratio


def batch_metrics(inputs: LossInputs, surrogate: Surrogate) -> dict[str, Tensor]:
    """Numbers to log, detached; means unless the name says otherwise.

    clip_fraction     share of tokens whose gradient the trust region cut.
    ratio_mean, ratio_max  π_θ/π_old of the sampled tokens.
    kl_old            KL(π_old‖π_θ), estimated without bias and never negative (r − 1 − log r).
    advantage_abs     |A| per token.
    weight_mean       token reweighting (1 without).
    zero_variance     share of prompts whose rewards are all equal.
    kl_ref            KL(π_θ‖π_ref), k3, where a reference is given.
    entropy           of the policy, where it is given.
    rollout_kl, rollout_ratio_max, rollout_gap_mean, rollout_gap_max  KL(π_rollout‖π_old), k3,
                      the largest π_old/π_rollout, and the mean and the largest |log p| difference
                      between trainer and rollout engine, where its log-probs are given.
    list_entropy, list_kl, coefficient_abs  per prompt, for listwise objectives: H(P), KL(w*‖P)
                      and Σ|c|.
    """
    with torch.no_grad():
        log_ratio_BT = log_ratio(inputs)
        ratio_BT = log_ratio_BT.exp()
        weight_BT = torch.ones_like(ratio_BT) if inputs.weight_BT is None else inputs.weight_BT
        advantages_BT = inputs.require("advantages_BT")
        zero_variance_B = inputs.require("zero_variance_B").to(ratio_BT.dtype)
        metrics = {
            "clip_fraction": per_token(surrogate.clipped_BT, inputs),
            "ratio_mean": per_token(ratio_BT, inputs),
            "ratio_max": _largest(ratio_BT, inputs),
            "kl_old": per_token(ratio_BT - 1 - log_ratio_BT, inputs),
            "advantage_abs": per_token(advantages_BT.abs(), inputs),
            "weight_mean": per_token(weight_BT, inputs),
            "zero_variance": per_prompt(zero_variance_B / inputs.require("group_size_B"), inputs),
        }
        if inputs.ref_logp_BT is not None:
            metrics["kl_ref"] = per_token(k3(inputs.logp_BT - inputs.ref_logp_BT), inputs)
        if inputs.entropy_BT is not None:
            metrics["entropy"] = per_token(inputs.entropy_BT, inputs)
        if inputs.rollout_logp_BT is not None:
            gap_BT = inputs.old_logp_BT - inputs.rollout_logp_BT
            metrics["rollout_kl"] = per_token(k3(-gap_BT), inputs)
            metrics["rollout_ratio_max"] = _largest(gap_BT.exp(), inputs)
            metrics["rollout_gap_mean"] = per_token(gap_BT.abs(), inputs)
            metrics["rollout_gap_max"] = _largest(gap_BT.abs(), inputs)
        if inputs.list_logp_B is not None:
            metrics |= _list_metrics(inputs)
        return metrics


def _list_metrics(inputs: LossInputs) -> dict[str, Tensor]:
    target_B, logp_B = inputs.require("target_B"), inputs.require("list_logp_B")
    coefficient_B = inputs.require("advantages_BT")[:, 0]
    return {
        "list_entropy": per_prompt(-logp_B.exp() * logp_B, inputs),
        "list_kl": per_prompt(torch.xlogy(target_B, target_B) - target_B * logp_B, inputs),
        "coefficient_abs": per_prompt(coefficient_B.abs(), inputs),
    }


def per_token(x_BT: Tensor, inputs: LossInputs) -> Tensor:
    """This batch's share of the mean over all counted tokens, detached."""
    assert inputs.totals is not None
    counted_BT = x_BT.detach().to(inputs.logp_BT.dtype).masked_fill(~inputs.mask_BT, 0.0)
    return counted_BT.sum() / max(inputs.totals.tokens, 1.0)


def per_prompt(x_B: Tensor, inputs: LossInputs) -> Tensor:
    """This batch's share of the mean over prompts of sums over their responses, detached."""
    assert inputs.totals is not None
    return x_B.detach().sum() / inputs.totals.prompts


def _largest(x_BT: Tensor, inputs: LossInputs) -> Tensor:
    return x_BT.masked_fill(~inputs.mask_BT, 0.0).max()
