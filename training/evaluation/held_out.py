"""What a run measures on held-out prompts: accuracy, reach, and how base's reach has changed.

Reach is unbiased pass@k, of 1 and of as many samples as are drawn, beside its paired gap to the
model that the run started from (`boundary.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlvr_decode.training.config import Train
from rlvr_decode.training.evaluation.accuracy import accuracy
from rlvr_decode.training.evaluation.boundary import boundary_gap
from rlvr_decode.training.processes.distributed import Processes
from rlvr_decode.training.rollout.rollout import RolloutEngine
from rlvr_decode.training.tasks.task import Task


class HeldOut:
    """The same prompts at every evaluation of a run; the first evaluation is of base."""

    def __init__(self, config: Train) -> None:
        self.config = config
        self.base: list[int] | None = None
        """How many samples of each prompt base got right."""

    def measure(
        self,
        engine: RolloutEngine,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        processes: Processes | None = None,
    ) -> dict[str, float]:
        """Metrics of the model behind the engine; none if the run evaluates never."""
        settings = self.config.evaluation
        if settings.every == 0:
            return {}
        found = accuracy(
            engine,
            task,
            tokenizer,
            prompts=settings.prompts,
            samples=settings.samples,
            max_new_tokens=self.config.rollout.max_new_tokens,
            temperature=self.config.rollout.temperature,
            seed=self.config.seed,
            processes=processes,
        )
        metrics = {"held_out": found.mean, "held_out_se": found.standard_error}
        is_base = self.base is None
        self.base = self.base or found.correct
        for gap in boundary_gap(
            found.correct, self.base, settings.samples, sorted({1, settings.samples})
        ):
            metrics[f"pass_at_{gap.k}"] = gap.model
            if not is_base:
                metrics[f"pass_at_{gap.k}_gap"] = gap.difference
                metrics[f"pass_at_{gap.k}_gap_se"] = gap.standard_error
        return metrics

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {} if self.base is None else {"base_correct": self.base}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state, if it has any."""
        if "base_correct" in state:
            self.base = state["base_correct"]
