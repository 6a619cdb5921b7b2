"""Accuracy on held-out prompts, with its standard error."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from rlvr_decode.training.rollout import RolloutEngine
from rlvr_decode.training.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Mean reward over prompts, each the mean of its samples; the error is over prompts."""

    mean: float
    standard_error: float


def accuracy(
    engine: RolloutEngine,
    task: Task,
    *,
    prompts: int,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Accuracy:
    """Sample held-out prompts and judge; the same seed asks the same prompts."""
    asked = [task.prompt(index, seed=seed, split="held_out") for index in range(prompts)]
    rollouts = engine.sample(
        [prompt.text for prompt in asked],
        group=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    means = [
        statistics.fmean(task.reward(prompt, text) for text in rollouts.texts[at : at + samples])
        for at, prompt in zip(range(0, prompts * samples, samples), asked, strict=True)
    ]
    return Accuracy(
        mean=statistics.fmean(means),
        standard_error=statistics.stdev(means) / math.sqrt(prompts),
    )
