"""Running arms over questions: grouped by the checkpoints they need, in pieces that are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from tqdm import tqdm

from rlvr_decode.evaluate.arms import Arm
from rlvr_decode.evaluate.journal import Journal, Row
from rlvr_decode.evaluate.questions import Q, digest
from rlvr_decode.evaluate.sampling import Question, Response, Sampler


class Judge(Protocol):
    """What tells right from wrong."""

    def rewards(self, questions: Sequence[Question], texts: Sequence[str]) -> list[float]:
        """One reward from 0 to 1 for each text, in order."""
        ...

    def traits(self, text: str) -> Mapping[str, float]:
        """What else to count in a response, by name; the mean over responses is reported."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """How arms are measured.

    open_sampler  makes the sampler of an arm's checkpoints; arms of equal `checkpoints` share it.
    samples       responses to a prompt; a greedy arm draws one.
    piece         responses asked for at a time: what is lost when a run is stopped.
    """

    open_sampler: Callable[[Arm], Sampler]
    judge: Judge
    samples: int
    seed: int = 0
    piece: int = 1024
    keep_texts: bool = False

    def run(self, arms: Sequence[Arm], questions: Sequence[Q], journal: Journal) -> None:
        """Ask every arm every question that the journal has no row of."""
        by_checkpoints: dict[object, list[Arm]] = {}
        for arm in arms:
            if not all(journal.has(arm, digest(question)) for question in questions):
                by_checkpoints.setdefault(arm.checkpoints, []).append(arm)
        pending = [arm for group in by_checkpoints.values() for arm in group]
        with tqdm(total=len(pending) * len(questions), unit="prompt", disable=None) as bar:
            for group in by_checkpoints.values():
                with closing(self.open_sampler(group[0])) as sampler:
                    for arm in group:
                        bar.set_description(f"{arm.label}, {arm.drawing}"[:60])
                        self._run_arm(arm, questions, journal, sampler, bar.update)

    def _run_arm(
        self,
        arm: Arm,
        questions: Sequence[Q],
        journal: Journal,
        sampler: Sampler,
        advance: Callable[[int], object],
    ) -> None:
        samples = self.samples if arm.temperature else 1
        step = max(1, self.piece // samples)
        for start in range(0, len(questions), step):
            asked = questions[start : start + step]
            missing = [q for q in asked if not journal.has(arm, digest(q))]
            if missing:
                seed = _seed(self.seed, digest(missing[0]))
                answers = sampler.sample(missing, arm, samples=samples, seed=seed)
                journal.add(arm, self._rows(missing, answers))
            advance(len(asked))

    def _rows(self, questions: Sequence[Q], answers: Sequence[Sequence[Response]]) -> list[Row]:
        pairs = [(q, each) for q, some in zip(questions, answers, strict=True) for each in some]
        rewards = iter(
            self.judge.rewards([q for q, _ in pairs], [response.text for _, response in pairs])
        )
        rows = []
        for question, responses in zip(questions, answers, strict=True):
            traits = [self.judge.traits(response.text) for response in responses]
            rows.append(
                Row(
                    prompt=digest(question),
                    rewards=[next(rewards) for _ in responses],
                    lengths=[response.length for response in responses],
                    finished=[response.finished for response in responses],
                    entropies=[response.entropy for response in responses],
                    rates=[response.rate for response in responses],
                    traits={name: [trait[name] for trait in traits] for name in traits[0]},
                    texts=[response.text for response in responses] if self.keep_texts else None,
                )
            )
        return rows


def _seed(seed: int, prompt: str) -> int:
    """Of one piece: the same for every arm, another for every piece."""
    text = f"{seed}/{prompt}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4]) >> 1
