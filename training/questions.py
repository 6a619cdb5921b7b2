"""Questions from Python: rows and reward functions as a task, without a file or a recipe."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rlvr_decode.training.rewards import REWARDS
from rlvr_decode.training.task import Prompt, Split

Reward = Callable[[str, str], float]
"""(response, answer) -> a number."""
Rewards = str | Reward | Sequence[str | Reward]
Rows = Iterable[Mapping[str, Any]]
"""Each with strings "prompt" and "answer"."""


class Questions:
    """Prompts in a fresh seeded order each epoch; a response earns the sum of the rewards.

    The rewards run in this process: one that hangs hangs the run.
    """

    def __init__(self, rewards: Rewards, dataset: Rows, held_out: Rows | None) -> None:
        listed = [rewards] if isinstance(rewards, str) or callable(rewards) else list(rewards)
        if not listed:
            raise ValueError("rewards=[]: give at least one function or name")
        self.rewards = [_find(reward) for reward in listed]
        self.prompts: dict[str, list[Prompt]] = {"train": _read(dataset, "dataset")}
        if held_out is not None:
            self.prompts["held_out"] = _read(held_out, "held_out")
            texts = [{prompt.text for prompt in split} for split in self.prompts.values()]
            if shared := sorted(set.intersection(*texts)):
                raise ValueError(f"held_out: {shared[0]!r} is a training prompt too")

    def prompt(self, index: int, *, seed: int, split: Split) -> Prompt:
        if split not in self.prompts:
            raise ValueError("evaluation needs held-out prompts: pass held_out=rows")
        prompts = self.prompts[split]
        epoch, position = divmod(index, len(prompts))
        order = list(range(len(prompts)))
        random.Random(f"{seed}/{split}/{epoch}").shuffle(order)
        return prompts[order[position]]

    def reward(self, prompt: Prompt, response: str) -> float:
        return sum(float(reward(response, prompt.answer)) for reward in self.rewards)

    def digest(self) -> str:
        """Of every prompt and answer: what a resumed run must find unchanged."""
        rows = {
            split: [(prompt.text, prompt.answer) for prompt in prompts]
            for split, prompts in self.prompts.items()
        }
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def in_memory(
    rewards: Rewards, dataset: Rows, held_out: Rows | None
) -> tuple[Questions, dict[str, Any]]:
    """The task, and the section [task] that tells it apart from others."""
    task = Questions(rewards, dataset, held_out)
    names = [reward.__name__ for reward in task.rewards]
    return task, {"name": "python", "options": {"rewards": names, "sha256": task.digest()}}


def _find(reward: str | Reward) -> Any:
    if callable(reward):
        return reward
    if reward not in REWARDS:
        raise ValueError(f"reward {reward!r}: unknown; known: {', '.join(REWARDS)}")
    return REWARDS[reward]


def _read(rows: Rows, where: str) -> list[Prompt]:
    prompts = []
    for number, row in enumerate(rows):
        if not all(isinstance(row.get(key), str) for key in ("prompt", "answer")):
            raise ValueError(
                f'{where}[{number}]: needs strings "prompt" and "answer", got {dict(row)!r:.80}'
            )
        prompts.append(Prompt(text=row["prompt"], answer=row["answer"]))
    if not prompts:
        raise ValueError(f"{where}: has no rows")
    return prompts
