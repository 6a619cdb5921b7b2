"""Questions from Python: rows and reward functions as a task, without a file or a recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rlvr_decode.training.rewards.judging import Judge, read_rewards
from rlvr_decode.training.tasks.prompts import PromptSets
from rlvr_decode.training.tasks.task import Prompt, Split

Reward = Callable[[str, str], float | None]
"""(response, answer) -> a number, or None where it does not apply."""
Rewards = str | Reward | Sequence[str | Reward]
Rows = Iterable[Mapping[str, Any]]
"""Each with strings "prompt" and "answer"."""


class Questions:
    """Prompts in a fresh seeded order each epoch; a response earns the sum of the rewards.

    Rewards given by name, "module:function" too, run where one that hangs can be killed; functions
    run in this process.
    """

    def __init__(self, rewards: Rewards, dataset: Rows, held_out: Rows | None) -> None:
        listed = [rewards] if isinstance(rewards, str) or callable(rewards) else list(rewards)
        if not listed:
            raise ValueError("rewards=[]: give at least one function or name")
        names = [reward for reward in listed if isinstance(reward, str)]
        self.functions = [reward for reward in listed if not isinstance(reward, str)]
        self.named = Judge(read_rewards(names)) if names else None
        self.names = [*names, *(function.__name__ for function in self.functions)]
        self.prompts = PromptSets(
            _read(dataset, "dataset"),
            None if held_out is None else _read(held_out, "held_out"),
            "held_out",
        )

    def prompt(self, index: int, *, seed: int, split: Split) -> Prompt:
        return self.prompts.prompt(index, seed=seed, split=split)

    def reward(self, prompt: Prompt, response: str) -> float:
        return self.judge([prompt], [response])[0] or 0.0

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        answers = [prompt.answer for prompt in prompts]
        sums: list[float | None] = [None] * len(prompts)
        if self.named is not None:
            sums = self.named.judge(responses, answers)
        for function in self.functions:
            for at, pair in enumerate(zip(responses, answers, strict=True)):
                if (value := function(*pair)) is not None:
                    sums[at] = (sums[at] or 0.0) + float(value)
        return sums

    def take_counts(self) -> dict[str, float]:
        return {} if self.named is None else self.named.take_counts()

    def digest(self) -> str:
        """Of every prompt and answer: what a resumed run must find unchanged."""
        splits = {"train": self.prompts.train, "held_out": self.prompts.held_out}
        rows = {
            split: [(prompt.text, prompt.answer) for prompt in prompts]
            for split, prompts in splits.items()
            if prompts is not None
        }
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def in_memory(
    rewards: Rewards, dataset: Rows, held_out: Rows | None
) -> tuple[Questions, dict[str, Any]]:
    """The task, and the section [task] that tells it apart from others."""
    task = Questions(rewards, dataset, held_out)
    return task, {"name": "python", "options": {"rewards": task.names, "sha256": task.digest()}}


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
