"""What a task is: prompts that can be counted, and a verdict on each response.

A task is a stream of prompts that can be entered anywhere: prompt number `i` of a seed is always
the same one. So a run's place in its data is a single integer, and resuming needs nothing else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Split = Literal["train", "held_out"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A question as plain text, and its right answer."""

    text: str
    answer: str


class Task(Protocol):
    """What the trainer asks of a task."""

    def prompt(self, index: int, *, seed: int, split: Split) -> Prompt:
        """Number `index` of an endless stream; no prompt is in both splits."""
        ...

    def reward(self, prompt: Prompt, response: str) -> float:
        """How right a response is, from 0 to 1."""
        ...


@runtime_checkable
class Corpus(Task, Protocol):
    """A task that can also write worked responses, to pretrain on."""

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """One response, right or wrong, as the corpus' authors would write it."""
        ...
