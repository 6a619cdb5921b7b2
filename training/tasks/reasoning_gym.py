"""Tasks of the package `reasoning-gym`: endless made-up puzzles, each with its own scorer.

A puzzle is made again from its seed where it is judged, so that its metadata never travels.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import reasoning_gym  # type: ignore[import-untyped]
from reasoning_gym.factory import DATASETS  # type: ignore[import-untyped]

from rlvr_decode.training.rewards.guard import guarded
from rlvr_decode.training.rewards.judging import Judge, Weighted
from rlvr_decode.training.tasks.task import Prompt, Split

# Their scorers evaluate text, most of them the response: here that is refused.
EVALUATING = (
    "binary_matrix", "bitwise_arithmetic", "codeio", "countdown", "intermediate_integration",
    "n_queens", "number_sorting", "polynomial_multiplication", "puzzle24", "simple_integration",
    "spiral_matrix", "string_insertion",
)  # fmt: skip

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_HELD_OUT_SHARE = 8
_MOST_DRAWS = 1000


class ReasoningGym:
    """The task `reasoning_gym:NAME`.

    settings  of the puzzle, such as {max_terms = 2} for basic_arithmetic.
    template  what is asked, "{prompt}" standing for the puzzle.
    chat      ask in the tokenizer's chat template.
    tag       score only what is inside the last <tag>…</tag>, and nothing without one; absent,
              the whole response, which many scorers want to be the bare answer.
    number    score only the last number in the response (inside the tag, if there is one), and
              nothing without one: for small models, which answer in sentences.
    workers, time_out, memory_gb  of the judging processes: see `Judge`.

    One puzzle in eight, by a hash of its question, is held out: the splits never meet, however
    few different questions a task has.
    """

    def __init__(
        self,
        name: str,
        /,
        *,
        settings: Mapping[str, Any] | None = None,
        template: str = "{prompt}\n",
        chat: bool = False,
        tag: str | None = None,
        number: bool = False,
        workers: int = 2,
        time_out: float = 5.0,
        memory_gb: float = 4.0,
    ) -> None:
        if name in EVALUATING:
            raise ValueError(f"reasoning_gym:{name}: its scorer evaluates text, which is refused")
        if "{prompt}" not in template:
            raise ValueError(f"template={template!r}: needs {{prompt}} where the puzzle goes")
        self._name, self._settings = name, json.dumps(dict(settings or {}), sort_keys=True)
        self._template, self._chat = template, chat
        puzzle(name, self._settings, 0)
        options = {"name": name, "settings": self._settings, "tag": tag, "number": number}
        self._judge = Judge(
            [Weighted(name="rlvr_decode.training.tasks.reasoning_gym:score", options=options)],
            workers=workers,
            time_out=time_out,
            memory_gb=memory_gb,
        )

    def prompt(self, index: int, *, seed: int, split: Split) -> Prompt:
        for draw in range(_MOST_DRAWS):
            number = _digest(f"{self._name}/{split}/{seed}/{index}/{draw}")
            _, entry = puzzle(self._name, self._settings, number)
            question = entry["question"]
            if (_digest(question) % _HELD_OUT_SHARE == 0) == (split == "held_out"):
                text = self._template.replace("{prompt}", question)
                messages = (("user", text),) if self._chat else ()
                source = json.dumps({"seed": number, "question": _digest(question)})
                return Prompt(
                    text=text, answer=str(entry["answer"]), messages=messages, source=source
                )
        raise ValueError(
            f"reasoning_gym:{self._name}: {_MOST_DRAWS} puzzles hold none for {split}; "
            f"its settings {self._settings} allow too few"
        )

    def reward(self, prompt: Prompt, response: str) -> float:
        return self.judge([prompt], [response])[0] or 0.0

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        return self._judge.judge(responses, [prompt.source for prompt in prompts])

    def take_counts(self) -> dict[str, float]:
        return self._judge.take_counts()


def score(
    response: str, source: str, *, name: str, settings: str, tag: str | None, number: bool = False
) -> float:
    """What the puzzle's own scorer says of a response, from 0 to 1."""
    if tag is not None:
        _, opening, inside = response.rpartition(f"<{tag}>")
        response, closing, _ = inside.partition(f"</{tag}>")
        if not opening or not closing:
            return 0.0
    if number:
        numbers = _NUMBER.findall(response)
        if not numbers:
            return 0.0
        response = numbers[-1]
    asked = json.loads(source)
    dataset, entry = puzzle(name, settings, asked["seed"])
    if _digest(entry["question"]) != asked["question"]:
        raise ValueError(f"reasoning_gym:{name}: the same seed made another puzzle")
    try:
        with guarded():
            return float(dataset.score_answer(response.strip(), entry))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return 0.0  # some scorers trip over a malformed answer


@lru_cache(maxsize=512)
def puzzle(name: str, settings: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """A data set of one puzzle, and the puzzle."""
    if name not in DATASETS:
        raise ValueError(f"reasoning_gym:{name}: unknown; known: {', '.join(sorted(DATASETS))}")
    try:
        dataset = reasoning_gym.create_dataset(name, **json.loads(settings), seed=seed, size=1)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"reasoning_gym:{name}: settings {settings}: {error}") from None
    return dataset, dataset[0]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
