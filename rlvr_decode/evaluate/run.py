"""An evaluation from its arguments to its findings."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlvr_decode.evaluate.arms import CONTROLS, Arm, control, grid, rivals
from rlvr_decode.evaluate.engines import Engines, check_arms, engine_of
from rlvr_decode.evaluate.journal import Journal
from rlvr_decode.evaluate.measure import Judge, Measurement
from rlvr_decode.evaluate.questions import choose_questions, digest
from rlvr_decode.evaluate.report import Evaluation
from rlvr_decode.evaluate.sampling import Question
from rlvr_decode.evaluate.settings import read_settings
from rlvr_decode.evaluate.statistics import INTERVALS
from rlvr_decode.evaluate.summary import Choice, Summary, suggest, summaries
from rlvr_decode.pair import Pair
from rlvr_decode.params import Extrapolation

KS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROMPTS, CONFIRM = 200, 400
RIVAL_TEMPERATURES, RIVAL_WEIGHTS = (0.7, 0.3, 0.0), (0.5, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A task, as the command line names it.

    name       for the results' header: what makes two runs the same.
    questions  a stream of prompts, which may repeat itself.
    endless    whether the stream is worth drawing a default number from; a file is taken whole.
    """

    name: str
    questions: Iterable[Question]
    endless: bool
    judge: Judge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How it is measured."""
    add = parser.add_argument_group("measurement").add_argument
    numbers: dict[str, Any] = {"type": float, "nargs": "*", "metavar": "NUMBER"}
    add("--temperature", **(numbers | {"nargs": "+"}), default=[1.0],
        help="0 is greedy; settings are suggested for the first one (default: 1)")  # fmt: skip
    add("--top-p", type=float, default=1.0, help="of every arm (default: 1)")
    add("--samples", type=int, default=2, help="responses a prompt, one if greedy (default: 2)")
    add("--max-tokens", type=int, default=128, help="of a response (default: 128)")
    add("--prompts", type=int, help=f"to compare on (default: {PROMPTS}, or half of a file)")
    add("--confirm", type=int, help=f"fresh ones (default: {CONFIRM}, or the rest; 0: none)")
    add("--rival-temperature", **numbers, default=list(RIVAL_TEMPERATURES),
        help="of rlvr alone (default: 0.7 0.3 0; without numbers: none)")  # fmt: skip
    add("--weights", **numbers,
        help="strengths by which the weights move instead (default: 0.5 1)")  # fmt: skip
    add("--control", choices=(*CONTROLS, "none"),
        help="a push as large in a direction that means nothing: the update's entries shuffled, or "
        "Δ over the vocabulary (default: vocabulary; update with vLLM)")  # fmt: skip
    add("--interval", choices=sorted(INTERVALS), default="t", help="default: t")
    add("--seed", type=int, default=0, help="default: 0")
    add("--keep-texts", action="store_true", help="write the responses too")


def evaluate(args: argparse.Namespace, pair: Pair, asked: Asked) -> Evaluation:
    """Measure what the arguments ask for, going on where a run with the same --out stopped.

    Raises ValueError for what cannot be measured, before anything is.
    """
    arms = grid(read_settings(args, pair), temperatures=args.temperature, top_p=args.top_p)
    plan = _plan(args, pair, arms)
    check_arms(args, pair, [*arms, *plan.others, *plan.controls(arms[-1])])
    shared, fresh = _questions(args, asked)
    journal = Journal.open(Path(args.out) / "results.jsonl", _header(args, pair, asked))

    with tempfile.TemporaryDirectory(prefix="rlvr-decode-") as scratch:
        measurement = Measurement(
            open_sampler=Engines(args, pair, Path(scratch)).open,
            judge=asked.judge,
            samples=args.samples,
            seed=args.seed,
            piece=args.batch,
            keep_texts=args.keep_texts,
        )

        def measured(of: Sequence[Arm], questions: Sequence[Question]) -> dict[Arm, Summary]:
            measurement.run(of, questions, journal)
            names = [digest(question) for question in questions]
            return summaries(journal, of, names, ks=KS, interval=INTERVALS[args.interval])

        compared = measured(arms, shared)
        choice = suggest(compared, INTERVALS[args.interval])
        beside = [arm for arm in plan.beside(choice) if arm not in arms]
        compared |= measured(beside, shared)
        confirmed = {}
        if fresh and not choice.is_rlvr:
            confirmed = measured(plan.confirming(choice), fresh)
    return Evaluation(
        title=f"{pair.name} on {asked.name}",
        about=f"{args.samples} samples a prompt (one if greedy), at most {args.max_tokens} tokens, "
        f"{engine_of(args, pair)}, {args.interval} intervals.",
        compared=compared,
        choice=choice,
        confirmed=confirmed,
        samples=args.samples,
        interval=INTERVALS[args.interval],
    )


def _questions(args: argparse.Namespace, asked: Asked) -> tuple[list[Question], list[Question]]:
    prompts, confirm = args.prompts, args.confirm
    if asked.endless:
        prompts = PROMPTS if prompts is None else prompts
        confirm = CONFIRM if confirm is None else confirm
    return choose_questions(asked.questions, prompts=prompts, confirm=confirm)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The arms beside the grid: rivals that need no choice, and what the chosen arm is held to."""

    others: list[Arm]
    control: str

    def controls(self, arm: Arm) -> list[Arm]:
        return [] if self.control == "none" else [control(arm, self.control)]

    def beside(self, choice: Choice) -> list[Arm]:
        if choice.is_rlvr:
            return self.others
        arm = choice.arm
        return list(dict.fromkeys([arm.masked_rlvr, *self.controls(arm), *self.others]))

    def confirming(self, choice: Choice) -> list[Arm]:
        arm = choice.arm
        base = replace(arm.rlvr, extrapolation=Extrapolation(strength=-1.0))
        return list(dict.fromkeys([arm, arm.rlvr, *self.beside(choice), base]))


def _plan(args: argparse.Namespace, pair: Pair, arms: list[Arm]) -> Plan:
    engine = engine_of(args, pair)
    usual = {"endpoint": "none", "vllm": "update", "transformers": "vocabulary"}[engine]
    weights = args.weights
    if weights is None:
        weights = [] if engine == "endpoint" else list(RIVAL_WEIGHTS)
    others = rivals(
        temperatures=args.rival_temperature, top_p=args.top_p, weight_strengths=weights, grid=arms
    )
    return Plan(others=others, control=args.control or usual)


def _header(args: argparse.Namespace, pair: Pair, asked: Asked) -> dict[str, Any]:
    """What rows of one file have in common."""
    return {
        "pair": pair.name,
        "sha256": {**_weights(pair.base.sha256, "base"), **_weights(pair.rlvr.sha256, "rlvr")},
        "task": asked.name,
        "engine": engine_of(args, pair),
        "samples": args.samples,
        "max_tokens": args.max_tokens,
        "seed": args.seed,
        "confirm": args.confirm != 0,
    }


def _weights(digests: Any, role: str) -> dict[str, str]:
    return {f"{role}/{k}": v for k, v in digests.items() if k.endswith(".safetensors")}
