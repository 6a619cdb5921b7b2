"""What a task is: prompts that can be counted, and a verdict on each response.

A task is a stream of prompts that can be entered anywhere: prompt number `i` of a seed is always
the same one. So a run's place in its data is a single integer, and resuming needs nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Split = Literal["train", "held_out"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A question, and its right answer.

    text      the question; of a chat, its messages in a form for people.
    answer    what the reward compares with.
    messages  (role, content) of each turn, where the question is a chat.
    source    where the prompt came from, for a task that needs more than the answer to judge.
    """

    text: str
    answer: str
    messages: tuple[tuple[str, str], ...] = ()
    source: str = ""


class Task(Protocol):
    """What the trainer asks of a task."""

    def prompt(self, index: int, *, seed: int, split: Split) -> Prompt:
        """Number `index` of an endless stream; no prompt is in both splits."""
        ...

    def reward(self, prompt: Prompt, response: str) -> float:
        """How right a response is, from 0 to 1."""
        ...


@runtime_checkable
class BatchJudge(Protocol):
    """A task that judges many responses at once, some of them in other processes."""

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        """One reward per response, in order; None where no reward applies."""
        ...

    def take_counts(self) -> dict[str, float]:
        """What went wrong since the last call, as metrics."""
        ...


def judge(
    task: Task, prompts: Sequence[Prompt], responses: Sequence[str]
) -> tuple[list[float | None], dict[str, float]]:
    """The reward of each response to the prompt beside it, and metrics of the judging."""
    if isinstance(task, BatchJudge):
        return task.judge(prompts, responses), task.take_counts()
    pairs = zip(prompts, responses, strict=True)
    return [task.reward(prompt, response) for prompt, response in pairs], {}


def fill_skipped(rewards: Sequence[float | None], group: int) -> list[float]:
    """Rewards without gaps: a skipped response gets its group's mean, so it pulls neither way.

    A group that was skipped whole gets 0.

    >>> fill_skipped([1.0, None, 0.0, None], 2)
    [1.0, 1.0, 0.0, 0.0]
    """
    filled = []
    for at in range(0, len(rewards), group):
        members = rewards[at : at + group]
        known = [reward for reward in members if reward is not None]
        mean = sum(known) / len(known) if known else 0.0
        filled += [mean if reward is None else reward for reward in members]
    return filled


@runtime_checkable
class Traits(Protocol):
    """A task that counts more in a response than whether it is right."""

    def traits(self, response: str) -> Mapping[str, float]:
        """Numbers by name, always the same names; their means over responses are reported."""
        ...


@runtime_checkable
class FinalAnswers(Protocol):
    """A task that can tell a response's final answer, right or wrong."""

    def answer(self, response: str) -> str:
        """The answer; responses that agree in it agree, however they reason."""
        ...


def final_answers(task: Task, responses: Sequence[str]) -> list[str]:
    """What each response says in the end; the whole of it, where the task cannot tell."""
    if isinstance(task, FinalAnswers):
        return [task.answer(response) for response in responses]
    return list(responses)


@runtime_checkable
class Corpus(Task, Protocol):
    """A task that can also write worked responses, to pretrain on."""

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """One response, right or wrong, as the corpus' authors would write it."""
        ...
