"""The stage monitor in the loop: what each batch tells it, and what its schedule changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from rlvr_decode.training.config import build
from rlvr_decode.training.objectives import LossInputs
from rlvr_decode.training.rank.spectral import trajectory_rank
from rlvr_decode.training.rollout.rollout import Rollouts
from rlvr_decode.training.stages.dynamics import batch_diagnostics
from rlvr_decode.training.stages.monitor import StageMonitor, StageSettings, weigh_positives


class Staging:
    """Follows a run if settings are given, and is nothing otherwise."""

    def __init__(self, settings: Mapping[str, Any] | None) -> None:
        self.monitor = None
        if settings is not None:
            self.monitor = StageMonitor(build(StageSettings, settings, "stages"))

    def observe(
        self,
        batch: LossInputs,
        rollouts: Rollouts,
        rewards_B: Tensor,
        *,
        answers: Sequence[str],
        rank_B: Tensor | None = None,
    ) -> tuple[LossInputs, dict[str, Any]]:
        """The prepared batch as the schedule wants it, and the diagnostics to log.

        rewards_B  as the task gave them, before any shaping.
        answers    each response's final answer.
        rank_B     trajectory ranks, if they are known; otherwise they are taken over the paper's
                   windows where the sampler has kept hidden states.
        """
        if self.monitor is None:
            return batch, {}
        if batch.advantages_BT is None:
            raise ValueError(
                "stages: a listwise objective has no advantages before its first pass; choose an "
                "objective with advantages or leave [stages] out"
            )
        if rank_B is None and rollouts.hidden_BTD is not None:
            rank_B = trajectory_rank(rollouts.hidden_BTD, rollouts.mask_BT)
        metrics = batch_diagnostics(
            logp_BT=rollouts.logp_BT,
            advantages_BT=batch.advantages_BT,
            mask_BT=rollouts.mask_BT,
            rewards_B=rewards_B,
            group_B=batch.group_B,
            answers=answers,
            solutions=rollouts.texts,
            rank_B=rank_B,
        )
        self.monitor.update({**metrics, "reward": rewards_B.mean().item()})
        weight = self.monitor.positive_weight
        if weight != 1:
            batch = replace(batch, advantages_BT=weigh_positives(batch.advantages_BT, weight))
        return batch, metrics | self.monitor.metrics()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {} if self.monitor is None else {"stages": self.monitor.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state, if it has any."""
        if self.monitor is not None and "stages" in state:
            self.monitor.load_state_dict(state["stages"])
