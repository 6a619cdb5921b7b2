"""An objective: credit × policy loss × aggregation × token reweighting, plus KL and entropy terms.

    loss = Σ_i scale_i Σ_t [ρ_it·policy_loss(r_it, w_it·A_it) + kl_coef·KL_it − entropy_coef·H_it]

Left out: sampling, rewards, optimisers, and anything that needs a model.

B responses, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rlvr_decode.training.objectives.aggregations import AGGREGATIONS
from rlvr_decode.training.objectives.batch import cleaned, counted, counted_only
from rlvr_decode.training.objectives.checks import number, one_of, truth, whole_number
from rlvr_decode.training.objectives.correction import CORRECTIONS, rollout_correction
from rlvr_decode.training.objectives.inputs import LossInputs, LossOutputs
from rlvr_decode.training.objectives.kl import KL_ESTIMATORS
from rlvr_decode.training.objectives.metrics import batch_metrics, per_token
from rlvr_decode.training.objectives.policy_losses import Surrogate, log_ratio
from rlvr_decode.training.objectives.reweightings import REWEIGHTINGS, reweighted, token_weights
from rlvr_decode.training.objectives.shaping import overlong_penalty


class Credit(Protocol):
    """Who gets how much of the reward: an `Advantage`, or a listwise `Projection`."""

    @property
    def needs(self) -> tuple[str, ...]: ...

    def prepare(self, inputs: LossInputs) -> LossInputs: ...

    def project(self, inputs: LossInputs) -> LossInputs: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Advantage:
    """Credit fixed once per batch of rollouts by an estimator of `training/advantages.py`.

    `needs` names the fields of LossInputs that the estimator takes beyond rewards_B and group_B.
    """

    estimator: Callable[..., Tensor]
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def prepare(self, inputs: LossInputs) -> LossInputs:
        tensors = {name: inputs.require(name) for name in self.needs}
        advantages = self.estimator(inputs.rewards_B, inputs.group_B, **tensors, **self.options)
        if advantages.dim() == 1:
            advantages = advantages[:, None].expand(inputs.mask_BT.shape)
        return replace(inputs, advantages_BT=advantages)

    def project(self, inputs: LossInputs) -> LossInputs:
        return inputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """One loss for RLVR, put together from named pieces; presets pin them to papers.

    credit          who gets how much of the reward.
    policy_loss     loss of a token from its ratio and advantage; `reads` names what else it needs.
    aggregation     one of AGGREGATIONS; the constant ones divide by `max_tokens`.
    selection       which tokens the policy loss treats apart, chosen on the whole batch.
    overlong_buffer  responses within so many tokens of `overlong_tokens` lose up to 1 of their
                    reward before credit is given (`overlong_penalty`); 0 is never.
    reweighting     one of REWEIGHTINGS or "none", with `reweighting_alpha`, on tokens with
                    advantages of the sign `reweighting_on` ("both", "positive", "negative").
    kl_coef         factor of the KL penalty to the reference, by `kl_estimator`; `kl_unbiased`
                    multiplies it by π_θ/π_old.
    entropy_coef    factor of the entropy bonus.
    correction      one of CORRECTIONS, with π_old/π_rollout bounded to
                    [correction_low, correction_high].
    dynamic_sampling  whether the trainer is to replace groups of equal scores (`informative`)
                    before `prepare`.
    """

    name: str
    credit: Credit
    policy_loss: Callable[[LossInputs], Surrogate]
    aggregation: str
    reads: tuple[str, ...] = ()
    max_tokens: int | None = None
    selection: Callable[[LossInputs], Tensor] | None = None
    overlong_tokens: int | None = None
    overlong_buffer: int = 0
    reweighting: str = "none"
    reweighting_alpha: float = 0.2
    reweighting_on: str = "both"
    kl_coef: float = 0.0
    kl_estimator: str = "k3"
    kl_unbiased: bool = False
    entropy_coef: float = 0.0
    correction: str = "none"
    correction_low: float = 0.0
    correction_high: float = 2.0
    dynamic_sampling: bool = False

    def __post_init__(self) -> None:
        one_of("aggregation", self.aggregation, AGGREGATIONS)
        one_of("reweighting", self.reweighting, ("none", *REWEIGHTINGS))
        one_of("reweighting_on", self.reweighting_on, ("both", "positive", "negative"))
        one_of("kl_estimator", self.kl_estimator, KL_ESTIMATORS)
        one_of("correction", self.correction, CORRECTIONS)
        number("reweighting_alpha", self.reweighting_alpha)
        number("kl_coef", self.kl_coef, low=0.0)
        number("entropy_coef", self.entropy_coef)
        number("correction_low", self.correction_low, low=0.0, high=1.0)
        number("correction_high", self.correction_high, low=1.0)
        for name in ("kl_unbiased", "dynamic_sampling"):
            truth(name, getattr(self, name))
        whole_number("overlong_buffer", self.overlong_buffer, low=0)
        if self.overlong_tokens is not None:
            whole_number("overlong_tokens", self.overlong_tokens, low=1)
        if self.overlong_buffer and self.overlong_tokens is None:
            raise ValueError("overlong_tokens=None: overlong_buffer needs the longest length")
        if self.max_tokens is not None:
            whole_number("max_tokens", self.max_tokens, low=1)
        elif "constant" in self.aggregation:
            raise ValueError(f"max_tokens=None: aggregation {self.aggregation!r} divides by it")

    @property
    def needs(self) -> frozenset[str]:
        """The optional fields of LossInputs that this objective reads."""
        needs = {*self.credit.needs, *self.reads} - {"mask_BT", "old_logp_BT"}
        needs |= {"ref_logp_BT"} if self.kl_coef else set()
        needs |= {"entropy_BT"} if self.entropy_coef else set()
        needs |= {"rollout_logp_BT"} if self.correction != "none" else set()
        return frozenset(needs)

    def prepare(self, inputs: LossInputs) -> LossInputs:
        """Everything that needs the whole batch, once: counts, advantages, token weights.

        Raises ValueError for an empty batch, one that is prepared already, a tensor that the
        objective reads and the batch lacks, or a number that is not finite where it counts.
        """
        if inputs.row_B is not None:
            raise ValueError("this batch is prepared already; its rewards would be shaped twice")
        inputs = cleaned(inputs)
        # The entropy is the present policy's, so it arrives with each fresh logp_BT.
        for name in sorted(self.needs - {"entropy_BT"}):
            inputs.require(name)
        if self.overlong_tokens is not None and self.overlong_buffer:
            penalty_B = overlong_penalty(
                inputs.mask_BT.sum(-1),
                max_tokens=self.overlong_tokens,
                buffer=self.overlong_buffer,
            )
            rewards_B = inputs.rewards_B + penalty_B.to(inputs.rewards_B.dtype)
            inputs = replace(inputs, rewards_B=rewards_B)
        inputs = self.credit.prepare(counted(inputs))
        if self.selection is not None:
            inputs = replace(inputs, selected_BT=self.selection(inputs))
        return inputs if self.reweighting == "none" else self._weighted(inputs)

    def project(self, inputs: LossInputs) -> LossInputs:
        """The first of two passes for listwise objectives: credit under the present policy.

        Takes a prepared batch (or whole groups of it) with logp_BT from a pass without gradient;
        afterwards it may be split anywhere. Other objectives return the batch unchanged.
        """
        logp_BT = counted_only(inputs.logp_BT, inputs.mask_BT)
        return self.credit.project(replace(inputs, logp_BT=logp_BT))

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        """The loss and metrics of a prepared batch or of a part of it.

        A batch that is not prepared is prepared first, as a whole batch of its own.
        """
        if inputs.row_B is None:
            inputs = self.prepare(inputs)
        inputs = replace(inputs, logp_BT=counted_only(inputs.logp_BT, inputs.mask_BT))
        if inputs.advantages_BT is None:
            inputs = self.credit.project(inputs)
        surrogate = self.policy_loss(reweighted(inputs))
        metrics = batch_metrics(inputs, surrogate)
        policy_BT = surrogate.loss_BT
        if self.correction != "none":
            weight_BT, outside_BT = rollout_correction(
                inputs, mode=self.correction, low=self.correction_low, high=self.correction_high
            )
            policy_BT = policy_BT * weight_BT
            metrics["correction_mean"] = per_token(weight_BT, inputs)
            metrics["correction_outside"] = per_token(outside_BT, inputs)
        loss_BT = (policy_BT + self._penalties(inputs)).masked_fill(~inputs.mask_BT, 0.0)
        scale_B = AGGREGATIONS[self.aggregation](inputs, max_tokens=self.max_tokens)
        loss = (scale_B * loss_BT.sum(-1)).sum()
        return LossOutputs(loss, metrics | {"loss": loss.detach()})

    def _weighted(self, inputs: LossInputs) -> LossInputs:
        weight_BT = token_weights(
            inputs, kind=self.reweighting, alpha=self.reweighting_alpha, on=self.reweighting_on
        )
        return replace(inputs, weight_BT=weight_BT)

    def _penalties(self, inputs: LossInputs) -> Tensor:
        total_BT = torch.zeros_like(inputs.logp_BT)
        if self.kl_coef:
            gap_BT = inputs.logp_BT - inputs.require("ref_logp_BT")
            kl_BT = KL_ESTIMATORS[self.kl_estimator](gap_BT)
            if self.kl_unbiased:
                kl_BT = kl_BT * log_ratio(inputs).exp()
            total_BT = total_BT + self.kl_coef * kl_BT
        if self.entropy_coef:
            entropy_BT = counted_only(inputs.require("entropy_BT"), inputs.mask_BT)
            total_BT = total_BT - self.entropy_coef * entropy_BT
        return total_BT
