"""Accuracy on held-out prompts, with its standard error."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from rlvr_decode.evaluate.sampling import rendered
from rlvr_decode.training.processes.distributed import Processes
from rlvr_decode.training.rollout.rollout import RolloutEngine
from rlvr_decode.training.tasks.task import Task, fill_skipped, judge


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Mean reward over prompts, each the mean of its samples; the error is over prompts.

    correct  how many samples of each prompt got the whole reward.
    """

    mean: float
    standard_error: float
    correct: list[int]


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
    processes: Processes | None = None,
) -> Accuracy:
    """Sample held-out prompts and judge; the same seed asks the same prompts.

    processes  that share the work, if there are several.
    """
    together = processes or Processes()
    asked = [task.prompt(index, seed=seed, split="held_out") for index in range(prompts)]
    mine = together.share(asked)
    rollouts = engine.sample(
        [rendered(prompt, tokenizer) for prompt in mine],
        group=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        first=together.bounds(prompts)[0],
    )
    judged, _ = judge(task, [prompt for prompt in mine for _ in range(samples)], rollouts.texts)
    filled = torch.tensor(
        fill_skipped(judged, samples), dtype=torch.float64, device=together.device
    )
    groups: list[list[float]] = together.gathered(filled).view(prompts, samples).tolist()
    means = [statistics.fmean(group) for group in groups]
    return Accuracy(
        mean=statistics.fmean(means),
        standard_error=statistics.stdev(means) / math.sqrt(prompts),
        correct=[sum(reward >= 1 for reward in group) for group in groups],
    )
