"""Listwise projections: LPO (arXiv 2605.06139) and its near twin TPO (arXiv 2604.06159).

The K responses to a prompt form a list. The policy induces a distribution on it, rewards define a
target, and training moves the first towards the second:

    P_k  = softmax_k(s_k)            s_k = reduce_t(log π_θ − log π_b)
    w*_k = softmax_k(R_k/τ + s°_k)   s° is s at the start of the update
    ∇L   = Σ_k c_k ∇s_k              c = ∂D(w*, P)/∂s, one number per response, Σ_k c_k = 0

For "ratio" π_b is the policy that sampled, so on-policy P is uniform whatever the lengths (LPO);
for "policy" log π_b = 0 and P is the policy's own distribution on the list (TPO).

Responses without a counted token leave the list before the softmax, so that Σc = 0 still holds,
and a list of one gets 0. Groups of equal rewards are kept: on-policy their c is 0, later it pulls
them back to where they were. Left out: the paper's exploratory virtual pair for K = 1.

B responses, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlvr_decode.training.objectives.divergences import DIVERGENCES
from rlvr_decode.training.objectives.groups import (
    group_log_softmax,
    group_mean,
    group_size,
    group_std,
)
from rlvr_decode.training.objectives.inputs import LossInputs

Coefficients = Callable[[Tensor, Tensor, Tensor], Tensor]

TEMPERATURES = ("sigma", "one", "mu", "batch_sigma")
LOGIT_REDUCTIONS = ("mean", "sum", "sum_over_const")
SIMPLEX_BASES = ("ratio", "policy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """Credit that depends on the present policy: −c_k, recomputed at every step.

    divergence       one of DIVERGENCES, or a function of (log P, log w*, groups) that returns c.
    temperature      τ: "sigma" (σ_G, matches GRPO), "one" (Dr. GRPO), "mu" (μ_G, MaxRL),
                     "batch_sigma" (std of R − μ_G over the batch, REINFORCE++-baseline), or a
                     number.
    scale            multiplies τ (TPO's η).
    logit_reduction  from tokens to s: "mean", "sum", or "sum_over_const" (over max_tokens).
    simplex_base     "ratio" (LPO) or "policy" (TPO).
    ddof             of the standard deviations; the papers' formulas are the population's, 0.
    """

    divergence: str | Coefficients
    temperature: str | float = "sigma"
    scale: float = 1.0
    logit_reduction: str = "mean"
    simplex_base: str = "ratio"
    ddof: int = 0
    max_tokens: int | None = None
    eps: float = 1e-6

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def prepare(self, inputs: LossInputs) -> LossInputs:
        """Fix the target w* for the whole update; from here on groups stay together."""
        list_B = _lists(inputs)
        if int(group_size(list_B).max()) < 2:
            raise ValueError("every list has one response; listwise objectives need at least 2")
        logits_B = self._rewards_over_temperature(inputs.rewards_B, list_B)
        logits_B = logits_B + self._logits(inputs.old_logp_BT, inputs)
        target_B = group_log_softmax(logits_B, list_B).exp()
        return replace(inputs, target_B=target_B, whole_groups=True)

    def project(self, inputs: LossInputs) -> LossInputs:
        """Coefficients under logp_BT as advantages −c; the batch may be split anywhere after."""
        if inputs.advantages_BT is not None:
            raise ValueError("this batch is projected already; project the prepared batch anew")
        _require_whole(inputs)
        list_B, target_B = _lists(inputs), inputs.require("target_B")
        logp_B = group_log_softmax(self._logits(inputs.logp_BT.detach(), inputs), list_B)
        divergence = self.divergence
        coefficients = DIVERGENCES[divergence] if isinstance(divergence, str) else divergence
        # A target of exactly 0 stands for one below the smallest number.
        log_target_B = target_B.clamp(min=torch.finfo(target_B.dtype).tiny).log()
        advantages_B = -coefficients(logp_B, log_target_B, list_B)
        return replace(
            inputs,
            advantages_BT=advantages_B[:, None].expand_as(inputs.logp_BT),
            list_logp_B=logp_B,
            whole_groups=False,
        )

    def _logits(self, logp_BT: Tensor, inputs: LossInputs) -> Tensor:
        if self.simplex_base == "ratio":
            logp_BT = logp_BT - inputs.old_logp_BT
        total_B = logp_BT.sum(-1)
        if self.logit_reduction == "mean":
            return total_B / inputs.mask_BT.sum(-1).clamp(min=1)
        if self.logit_reduction == "sum_over_const":
            assert self.max_tokens is not None
            return total_B / self.max_tokens
        return total_B

    def _rewards_over_temperature(self, rewards_B: Tensor, list_B: Tensor) -> Tensor:
        """(R − μ_G)/τ, which the softmax cannot tell from R/τ; 0 where τ is not positive."""
        mean_B = group_mean(rewards_B, list_B)
        centred_B = rewards_B - mean_B
        if self.temperature == "sigma":
            tau_B = group_std(rewards_B, list_B, ddof=self.ddof)
        elif self.temperature == "mu":
            tau_B = mean_B
        elif self.temperature == "batch_sigma":
            tau_B = group_std(centred_B, torch.zeros_like(list_B), ddof=self.ddof)
        else:
            value = 1.0 if isinstance(self.temperature, str) else self.temperature
            tau_B = torch.full_like(rewards_B, value)
        bounded_B = tau_B.where(tau_B > 0, 1.0) * self.scale + self.eps
        return (centred_B / bounded_B).masked_fill(tau_B <= 0, 0.0)


def _lists(inputs: LossInputs) -> Tensor:
    """group_B, with every response that has no counted token in a list of its own."""
    ids, index_B = torch.unique(inputs.group_B, return_inverse=True)
    alone_B = len(ids) + torch.arange(len(index_B), device=index_B.device)
    return torch.where(inputs.mask_BT.any(-1), index_B, alone_B)


def _require_whole(inputs: LossInputs) -> None:
    here_B, whole_B = group_size(inputs.group_B), inputs.require("group_size_B")
    if bool((here_B != whole_B).any()):
        row = int((here_B != whole_B).nonzero()[0])
        raise ValueError(
            f"group {int(inputs.group_B[row])} has {int(here_B[row])} of its {int(whole_B[row])} "
            "responses here, and a listwise objective needs them all: split with batch.split(…), "
            "or first call objective.project(batch) on the whole groups"
        )
