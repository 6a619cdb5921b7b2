"""What a batch of rollouts does to the policy: one optimiser step, or several.

Mini-batches are steps; micro-batches are parts of one whose gradients add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor, nn

from rlvr_decode.training.config import Optim
from rlvr_decode.training.objectives import LossInputs, Objective, merge_metrics
from rlvr_decode.training.optim import set_lr
from rlvr_decode.training.rollout import Rollouts

LogProbs = Callable[[Rollouts], tuple[Tensor, Tensor]]
"""log p and entropy of the responses under the present policy."""

REMEDY = "The newest checkpoint is intact; lower optim.lr and start anew"


def update(
    step: int,
    batch: LossInputs,
    rollouts: Rollouts,
    *,
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    logprobs: LogProbs,
    settings: Optim,
) -> dict[str, float]:
    """Move the policy by a prepared batch; returns the metrics, averaged over optimiser steps.

    Raises FloatingPointError, before the optimiser moves, for a gradient that is not finite.
    """
    policy.train()
    lr = settings.lr * min(1.0, step / max(settings.warmup, 1))
    set_lr([optimizer], lr)
    parts: Iterable[LossInputs] = [batch]
    if settings.mini_batch is not None:
        parts = batch.mini_batches(settings.mini_batch)
    steps = []
    for number, part in enumerate(parts):
        if part.whole_groups:
            # At the first step the policy is still the one that sampled.
            fresh = part if number == 0 else _refreshed(part, rollouts, logprobs, settings)
            part = objective.project(fresh)
        metrics = _accumulate(part, rollouts, objective, logprobs, settings.micro_batch)
        norm = nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"step {step}: the gradient's norm is {norm.item()}. {REMEDY}")
        optimizer.step()
        optimizer.zero_grad()
        steps.append(metrics | {"grad_norm": norm.item()})
    return _averaged(steps) | {"lr": lr}


def _accumulate(
    batch: LossInputs, rollouts: Rollouts, objective: Objective, logprobs: LogProbs, size: int
) -> dict[str, float]:
    """Add the gradient of a batch, a micro-batch at a time."""
    parts = []
    for micro in batch.split(size):
        logp_BT, entropy_BT = logprobs(rollouts.select(micro.require("row_B")))
        if "entropy_BT" in objective.needs:
            micro = replace(micro, entropy_BT=entropy_BT)
        loss, metrics = objective(replace(micro, logp_BT=logp_BT))
        torch.autograd.backward(loss)
        parts.append(metrics)
    return {name: value.item() for name, value in merge_metrics(parts).items()}


@torch.no_grad()
def _refreshed(
    batch: LossInputs, rollouts: Rollouts, logprobs: LogProbs, settings: Optim
) -> LossInputs:
    """The batch with log p under the present policy."""
    rows = torch.split(batch.require("row_B"), settings.micro_batch)
    return replace(batch, logp_BT=torch.cat([logprobs(rollouts.select(part))[0] for part in rows]))


def _averaged(steps: list[dict[str, float]]) -> dict[str, float]:
    """Means over optimiser steps; of a maximum, the maximum."""
    return {
        name: (max if name.endswith("_max") else fmean)(step[name] for step in steps)
        for name in steps[0]
    }
