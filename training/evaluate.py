"""Accuracy on held-out prompts, with its standard error."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlvr_decode.training.rollout import RolloutEngine
from rlvr_decode.training.task import Task, fill_skipped, judge, render


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Mean reward over prompts, each the mean of its samples; the error is over prompts."""

    mean: float
    standard_error: float


def accuracy(
    engine: RolloutEngine,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
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
        [render(prompt, tokenizer) for prompt in asked],
        group=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    judged, _ = judge(task, [prompt for prompt in asked for _ in range(samples)], rollouts.texts)
    rewards = fill_skipped(judged, samples)
    means = [statistics.fmean(rewards[at : at + samples]) for at in range(0, len(rewards), samples)]
    return Accuracy(
        mean=statistics.fmean(means),
        standard_error=statistics.stdev(means) / math.sqrt(prompts),
    )
