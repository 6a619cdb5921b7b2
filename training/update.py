"""What a batch of rollouts does to the policy: one optimiser step, or several.

Mini-batches are steps; micro-batches are parts of one whose gradients add up, and so do the
gradients of several processes, each of which computes its own part of every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean

import torch
from torch import nn

from rlvr_decode.training.config import Optim
from rlvr_decode.training.objectives import LossInputs, Objective, merge_metrics
from rlvr_decode.training.policy.optim import set_lr
from rlvr_decode.training.policy.policies import Policies
from rlvr_decode.training.processes.distributed import Processes
from rlvr_decode.training.processes.sharding import full
from rlvr_decode.training.rollout.rollout import Rollouts

REMEDY = "The newest checkpoint is intact; lower optim.lr and start anew"


def update(
    step: int,
    batch: LossInputs,
    rollouts: Rollouts,
    *,
    policies: Policies,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    settings: Optim,
) -> dict[str, float]:
    """Move the policy by a prepared batch; returns the metrics, averaged over optimiser steps.

    Raises FloatingPointError, before the optimiser moves, for a gradient that is not finite.
    """
    policies.policy.train()
    lr = settings.lr * min(1.0, step / max(settings.warmup, 1))
    set_lr([optimizer], lr)
    parts: Iterable[LossInputs] = [batch]
    if settings.mini_batch is not None:
        parts = batch.mini_batches(settings.mini_batch)
    steps = []
    for number, part in enumerate(parts):
        mine, weight = _own(part, policies.processes)
        if mine.whole_groups:
            # At the first step the policy is still the one that sampled.
            fresh = mine if number == 0 else _refreshed(mine, rollouts, policies, settings)
            mine = objective.project(fresh)
        metrics = _accumulate(mine, weight, rollouts, objective, policies, settings.micro_batch)
        norm = full(nn.utils.clip_grad_norm_(policies.policy.parameters(), settings.max_grad_norm))
        if not torch.isfinite(norm):
            raise FloatingPointError(f"step {step}: the gradient's norm is {norm.item()}. {REMEDY}")
        optimizer.step()
        optimizer.zero_grad()
        steps.append(metrics | {"grad_norm": norm.item()})
    return _averaged(steps) | {"lr": lr}


def _own(part: LossInputs, processes: Processes) -> tuple[LossInputs, float]:
    """This process's share of an optimiser step, and its weight in it.

    Processes with nothing to do follow the others through the first group, with weight 0.
    """
    rows_B = processes.rows(part.group_B)
    if len(rows_B):
        return part.select(rows_B), 1.0
    return part.select((part.group_B == part.group_B[0]).nonzero().flatten()), 0.0


def _accumulate(
    batch: LossInputs,
    weight: float,
    rollouts: Rollouts,
    objective: Objective,
    policies: Policies,
    size: int,
) -> dict[str, float]:
    """Add the gradients of a batch, a micro-batch at a time, and those of all processes."""
    micros = [(micro, weight) for micro in batch.split(size)]
    # A sharded model needs all processes in every pass.
    micros += [(micros[0][0], 0.0)] * (policies.processes.most(len(micros)) - len(micros))
    parts = []
    for micro, factor in micros:
        said = policies.logprobs(
            rollouts.select(micro.require("row_B")), entropy="entropy_BT" in objective.needs
        )
        loss, metrics = objective(replace(micro, **said._asdict()))
        torch.autograd.backward(loss * factor)
        parts.append({name: value * factor for name, value in metrics.items()})
    policies.add_gradients()
    found = merge_metrics(parts)
    return policies.processes.merged({name: value.item() for name, value in found.items()})


@torch.no_grad()
def _refreshed(
    batch: LossInputs, rollouts: Rollouts, policies: Policies, settings: Optim
) -> LossInputs:
    """The batch with log p under the present policy."""
    rows = torch.split(batch.require("row_B"), settings.micro_batch)
    with policies.whole():
        logps = [policies.logprobs(rollouts.select(part)).logp_BT for part in rows]
    return replace(batch, logp_BT=torch.cat(logps))


def _averaged(steps: list[dict[str, float]]) -> dict[str, float]:
    """Means over optimiser steps; of a maximum, the maximum."""
    return {
        name: (max if name.endswith("_max") else fmean)(step[name] for step in steps)
        for name in steps[0]
    }
