"""Which questions are asked: each once, and some kept fresh for a confirmation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

from rlvr_decode.evaluate.sampling import Question

Q = TypeVar("Q", bound=Question)

_MOST_REPEATS = 2000


def digest(question: Question) -> str:
    """What a question is found by: the same text is the same question."""
    return hashlib.sha256(question.text.encode()).hexdigest()[:16]


def choose_questions(
    stream: Iterable[Q], *, prompts: int | None, confirm: int | None
) -> tuple[list[Q], list[Q]]:
    """Questions to compare arms on, and fresh ones to confirm the chosen arm on.

    A question is fresh by its text alone, half of them are: so more prompts, or going on with a run
    that was stopped, never makes a fresh one stale. With confirm=0 none is kept.

    prompts, confirm  how many; None takes what a finite stream has.

    Raises ValueError when the stream has not that many different ones.
    """
    wanted = {False: prompts, True: confirm}
    found: dict[bool, dict[str, Q]] = {False: {}, True: {}}
    repeats = 0
    for question in stream:
        name = digest(question)
        fresh = confirm != 0 and int(name, 16) % 2 == 1
        count = wanted[fresh]
        if name in found[fresh] or len(found[fresh]) == count:
            repeats += 1
        else:
            found[fresh][name], repeats = question, 0
        if repeats > _MOST_REPEATS or all(len(found[part]) == wanted[part] for part in found):
            break
    for fresh, kind in ((False, "prompts"), (True, "confirm")):
        count, got = wanted[fresh], len(found[fresh])
        if count is not None and got < count:
            kept = "" if confirm == 0 else " in that half (half of them are kept to confirm on)"
            raise ValueError(f"{kind}={count}: the task has only {got} different ones{kept}")
    if len(found[False]) < 2:
        raise ValueError(
            f"{len(found[False])} prompts: an interval over prompts needs at least 2; ask more"
        )
    return list(found[False].values()), list(found[True].values())
