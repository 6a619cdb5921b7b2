"""The prompts of a task's splits, in a fresh seeded order each epoch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from rlvr_decode.training.tasks.task import Prompt, Split


@dataclass(frozen=True, slots=True)
class PromptSets:
    """Training prompts, and held-out ones if there are any; no text may be in both.

    source  what the held-out prompts are called where they are given, for messages.
    """

    train: Sequence[Prompt]
    held_out: Sequence[Prompt] | None
    source: str

    def __post_init__(self) -> None:
        texts = {prompt.text for prompt in self.train}
        if shared := texts & {prompt.text for prompt in self.held_out or ()}:
            raise ValueError(f"{self.source}: {min(shared)!r} is a training prompt too")

    def prompt(self, index: int, *, seed: int, split: Split) -> Prompt:
        """Number `index` of an endless stream; raises ValueError if there is nothing held out."""
        prompts = self.train if split == "train" else self.held_out
        if prompts is None:
            raise ValueError(f"evaluation needs held-out prompts: set {self.source}")
        epoch, position = divmod(index, len(prompts))
        order = list(range(len(prompts)))
        random.Random(f"{seed}/{split}/{epoch}").shuffle(order)
        return prompts[order[position]]
