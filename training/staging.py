"""The stage monitor in the loop: what each batch tells it, and what its schedule changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from rlvr_decode.training.config import build
from rlvr_decode.training.dynamics import batch_diagnostics
from rlvr_decode.training.objectives import LossInputs
from rlvr_decode.training.rollout import Rollouts
from rlvr_decode.training.stages import StageMonitor, StageSettings, weigh_positives


class Staging:
    """Follows a run if settings are given, and is nothing otherwise.

    A task has no rule for the final answer of a response, so answers are whole responses.
    """

    def __init__(self, settings: Mapping[str, Any] | None) -> None:
        self.monitor = None
        if settings is not None:
            self.monitor = StageMonitor(build(StageSettings, settings, "stages"))

    def observe(
        self, batch: LossInputs, rollouts: Rollouts, rewards_B: Tensor
    ) -> tuple[LossInputs, dict[str, Any]]:
        """The prepared batch as the schedule wants it, and the diagnostics to log.

        rewards_B  as the task gave them, before any shaping.
        """
        if self.monitor is None:
            return batch, {}
        if batch.advantages_BT is None:
            raise ValueError(
                "stages: a listwise objective has no advantages before its first pass; choose an "
                "objective with advantages or leave [stages] out"
            )
        metrics = batch_diagnostics(
            logp_BT=rollouts.logp_BT,
            advantages_BT=batch.advantages_BT,
            mask_BT=rollouts.mask_BT,
            rewards_B=rewards_B,
            group_B=batch.group_B,
            answers=rollouts.texts,
            solutions=rollouts.texts,
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
