"""The tasks a recipe can name, and prompts read from files."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlvr_decode.training.addition import Addition
from rlvr_decode.training.rewards import REWARDS
from rlvr_decode.training.task import Prompt, Split, Task


class Jsonl:
    """Prompts and answers from JSONL files, one {"prompt": …, "answer": …} a line.

    path           the training prompts, in a fresh seeded order each epoch.
    held_out_path  the evaluation prompts.
    reward         a key of `REWARDS`.
    """

    def __init__(
        self, *, path: str, held_out_path: str | None = None, reward: str = "last_number"
    ) -> None:
        if reward not in REWARDS:
            raise ValueError(f"reward {reward!r}: unknown; known: {', '.join(REWARDS)}")
        self._reward = REWARDS[reward]
        self._prompts = {"train": _read_jsonl(Path(path))}
        if held_out_path is not None:
            self._prompts["held_out"] = _read_jsonl(Path(held_out_path))
            shared = set(self._prompts["train"]) & set(self._prompts["held_out"])
            if shared:
                text = min(prompt.text for prompt in shared)
                raise ValueError(f"{held_out_path}: {text!r} is a training prompt too")

    def prompt(self, index: int, *, seed: int, split: Split) -> Prompt:
        if split not in self._prompts:
            raise ValueError("evaluation needs held-out prompts: set task.options.held_out_path")
        prompts = self._prompts[split]
        epoch, position = divmod(index, len(prompts))
        order = list(range(len(prompts)))
        random.Random(f"{seed}/{split}/{epoch}").shuffle(order)
        return prompts[order[position]]

    def reward(self, prompt: Prompt, response: str) -> float:
        return self._reward(response, prompt.answer)


def _read_jsonl(path: Path) -> list[Prompt]:
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: is not JSON: {error}") from None
        if not isinstance(row, dict) or not all(
            isinstance(row.get(key), str) for key in ("prompt", "answer")
        ):
            raise ValueError(f'{path}:{number}: needs strings "prompt" and "answer", got {line!r}')
        prompts.append(Prompt(text=row["prompt"], answer=row["answer"]))
    if not prompts:
        raise ValueError(f"{path}: has no prompts")
    return prompts


TASKS: dict[str, Callable[..., Task]] = {"add3": Addition, "jsonl": Jsonl}


def make_task(name: str, options: dict[str, Any]) -> Task:
    """The task of that name, with its options."""
    if name not in TASKS:
        raise ValueError(f"task.name={name!r}: unknown; known: {', '.join(TASKS)}")
    known = inspect.signature(TASKS[name]).parameters
    if unknown := sorted(options.keys() - known.keys()):
        raise ValueError(
            f"task {name}: unknown {', '.join(unknown)}; known: {', '.join(known) or 'none'}"
        )
    return TASKS[name](**options)
