"""An objective: credit × policy loss × aggregation × token reweighting, plus KL and entropy terms.

    loss = Σ_i scale_i Σ_t [ρ_it·policy_loss(r_it, w_it·A_it) + kl_coef·KL_it − entropy_coef·H_it]

Left out: sampling, rewards, optimisers, and anything that needs a model.

B responses, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rlvr_decode.training.groups import group_size, group_sum, is_constant
from rlvr_decode.training.objectives.aggregations import AGGREGATIONS
from rlvr_decode.training.objectives.correction import CORRECTIONS, rollout_correction
from rlvr_decode.training.objectives.inputs import LossInputs, LossOutputs, Totals
from rlvr_decode.training.objectives.kl import KL_ESTIMATORS
from rlvr_decode.training.objectives.metrics import batch_metrics, per_token
from rlvr_decode.training.objectives.policy_losses import Surrogate, log_ratio
from rlvr_decode.training.objectives.reweightings import REWEIGHTINGS, reweighted


class Credit(Protocol):
    """Who gets how much of the reward: an `Advantage`, or a listwise `Projection`."""

    @property
    def needs(self) -> tuple[str, ...]: ...

    def prepare(self, inputs: LossInputs) -> LossInputs: ...

    def project(self, inputs: LossInputs) -> LossInputs: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Advantage:
    """Credit fixed once per rollout batch by an estimator of `training/advantages.py`.

    `needs` names the fields of LossInputs that the estimator takes beyond rewards_B and group_B.
    """

    estimator: Callable[..., Tensor]
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def prepare(self, inputs: LossInputs) -> LossInputs:
        tensors = {name: inputs.require(name) for name in self.needs}
        advantages = self.estimator(inputs.rewards_B, inputs.group_B, **tensors, **self.options)
        if advantages.dim() == 1:
            advantages = advantages[:, None].expand_as(inputs.old_logp_BT)
        return replace(inputs, advantages_BT=advantages)

    def project(self, inputs: LossInputs) -> LossInputs:
        return inputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """One loss for RLVR, put together from named pieces; presets pin them to papers.

    credit          advantages from rewards.
    policy_loss     loss of a token from its ratio and advantage.
    aggregation     one of AGGREGATIONS; "constant" divides by `max_tokens`.
    selection       which tokens the policy loss treats apart, chosen on the whole batch.
    shaping         new rewards from a batch, before the advantages (DAPO's overlong penalty).
    reweighting     one of REWEIGHTINGS or "none", with `reweighting_alpha`, on tokens with
                    advantages of the signs in `reweighting_on` ("both", "positive", "negative").
    kl_coef         factor of the KL penalty to the reference, by `kl_estimator`; `kl_unbiased`
                    multiplies it by π_θ/π_old.
    entropy_coef    factor of the entropy bonus.
    correction      one of CORRECTIONS, with π_old/π_rollout bounded to
                    [correction_low, correction_high].
    dynamic_sampling  whether the trainer is to replace groups of equal rewards
                    (`informative`) before `prepare`.
    """

    name: str
    credit: Credit
    policy_loss: Callable[[LossInputs], Surrogate]
    aggregation: str
    max_tokens: int | None = None
    selection: Callable[[LossInputs], Tensor] | None = None
    shaping: Callable[[LossInputs], Tensor] | None = None
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
        if self.aggregation == "constant" and (self.max_tokens is None or self.max_tokens < 1):
            raise ValueError(f"max_tokens={self.max_tokens}: aggregation 'constant' divides by it")

    @property
    def needs(self) -> frozenset[str]:
        """The optional fields of LossInputs that this objective reads."""
        needs = set(self.credit.needs)
        needs |= {"ref_logp_BT"} if self.kl_coef else set()
        needs |= {"entropy_BT"} if self.entropy_coef else set()
        needs |= {"rollout_logp_BT"} if self.correction != "none" else set()
        return frozenset(needs)

    def prepare(self, inputs: LossInputs) -> LossInputs:
        """Everything that needs the whole batch, once: counts, advantages, token weights.

        Raises ValueError for an empty batch, or for a number that is not finite where it counts.
        """
        inputs = _counted(_clean(inputs))
        if self.shaping is not None:
            inputs = replace(inputs, rewards_B=self.shaping(inputs))
        inputs = self.credit.prepare(inputs)
        if self.reweighting != "none":
            inputs = replace(
                inputs, weight_BT=REWEIGHTINGS[self.reweighting](inputs, self.reweighting_alpha)
            )
        if self.selection is not None:
            inputs = replace(inputs, selected_BT=self.selection(inputs))
        return inputs

    def project(self, inputs: LossInputs) -> LossInputs:
        """The first of two passes for listwise objectives: credit under the present policy.

        Takes a prepared batch (or whole groups of it) with logp_BT from a pass without gradient,
        after which it may be split anywhere. Other objectives return the batch unchanged.
        """
        return self.credit.project(inputs)

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        """The loss and metrics of a prepared batch or of a part of it.

        A batch that is not prepared is prepared first, as a whole batch of its own.
        """
        if inputs.totals is None or inputs.group_size_B is None:
            inputs = self.prepare(inputs)
        inputs = replace(inputs, logp_BT=_counted_only(inputs.logp_BT, inputs.mask_BT))
        inputs = self.credit.project(inputs)
        surrogate = self.policy_loss(reweighted(inputs, on=self.reweighting_on))
        metrics = batch_metrics(inputs, surrogate)
        policy_BT = surrogate.loss_BT
        if self.correction != "none":
            weight_BT, outside_BT = rollout_correction(
                inputs, mode=self.correction, low=self.correction_low, high=self.correction_high
            )
            policy_BT = policy_BT * weight_BT
            metrics["correction_mean"] = per_token(weight_BT, inputs)
            metrics["correction_outside"] = per_token(outside_BT, inputs)
        loss_BT = policy_BT + self._penalties(inputs)
        scale_B = AGGREGATIONS[self.aggregation](inputs, max_tokens=self.max_tokens)
        loss = (scale_B * loss_BT.masked_fill(~inputs.mask_BT, 0.0).sum(-1)).sum()
        return LossOutputs(loss, metrics | {"loss": loss.detach()})

    def _penalties(self, inputs: LossInputs) -> Tensor:
        total_BT = torch.zeros_like(inputs.logp_BT)
        if self.kl_coef:
            gap_BT = inputs.logp_BT - inputs.require("ref_logp_BT")
            kl_BT = KL_ESTIMATORS[self.kl_estimator](gap_BT)
            total_BT = total_BT + self.kl_coef * kl_BT * (
                log_ratio(inputs).exp() if self.kl_unbiased else 1.0
            )
        if self.entropy_coef:
            total_BT = total_BT - self.entropy_coef * inputs.require("entropy_BT")
        return total_BT


def one_of(name: str, value: str, known: Iterable[str]) -> None:
    """ValueError unless the option's value is a known name."""
    if value not in known:
        raise ValueError(f"{name}={value!r}; known: {', '.join(known)}")


def number(name: str, value: float, *, low: float = -math.inf, high: float = math.inf) -> None:
    """ValueError unless the option is a finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be a finite number")
    if not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be from {low:g} to {high:g}")


def _clean(inputs: LossInputs) -> LossInputs:
    """Mask as bool, tensors in float32 or wider, zeros where nothing counts, finite elsewhere."""
    if not len(inputs.group_B):
        raise ValueError("the batch has no responses")
    mask_BT = inputs.mask_BT.bool()
    changes: dict[str, Any] = {"mask_BT": mask_BT}
    for name in ("logp_BT", "old_logp_BT", "ref_logp_BT", "rollout_logp_BT", "entropy_BT"):
        value = getattr(inputs, name)
        if value is None:
            continue
        changes[name] = _counted_only(value, mask_BT)
        if not changes[name].detach().isfinite().all():
            raise ValueError(f"{name} is not finite on a token that counts")
    dtype = changes["old_logp_BT"].dtype
    for name in ("rewards_B", "greedy_rewards_B"):
        value = getattr(inputs, name)
        if value is None:
            continue
        if not value.isfinite().all():
            raise ValueError(f"{name} holds {value[~value.isfinite()][0].item()}; drop such rows")
        changes[name] = value.detach().to(dtype)
    return replace(inputs, **changes)


def _counted_only(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """In float32 or wider, with 0 where the mask is, so that padding can hold anything."""
    wide = x_BT.float() if x_BT.dtype in (torch.float16, torch.bfloat16) else x_BT
    return wide.masked_fill(~mask_BT, 0.0)


def _counted(inputs: LossInputs) -> LossInputs:
    mask_BT, group_B = inputs.mask_BT, inputs.group_B
    return replace(
        inputs,
        totals=inputs.totals or Totals.of(mask_BT, group_B),
        zero_variance_B=is_constant(inputs.rewards_B, group_B),
        group_size_B=group_size(group_B),
        group_tokens_B=group_sum(mask_BT.sum(-1), group_B),
        row_B=torch.arange(len(group_B), device=group_B.device),
    )
