"""A verb with a task: what the command line names, for `rlvr_decode.evaluate` to ask and judge."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import transformers

from rlvr_decode.evaluate.run import Asked
from rlvr_decode.training.config import override
from rlvr_decode.training.rewards.judging import RewardError
from rlvr_decode.training.tasks.data import Table, make_task
from rlvr_decode.training.tasks.tables import READERS
from rlvr_decode.training.tasks.task import Prompt, Split, Task, Traits, fill_skipped, judge

SPLITS = ("held_out", "train")


def run_verb(
    verb: str,
    summary: str | None,
    argv: Sequence[str],
    *,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace, Asked], None],
) -> int:
    """Parse, find the task, run; what cannot be done ends the process with status 2."""
    parser = argparse.ArgumentParser(prog=f"rlvr-decode {verb}", description=summary)
    add_arguments(parser)
    add_task_arguments(parser)
    args = parser.parse_args(argv)
    # Bars for loading a model would come between ours.
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        run(args, read_task(args))
    except (ValueError, RewardError, OSError) as error:
        parser.error(str(error))
    return 0


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """What is asked, and what counts as right."""
    group = parser.add_argument_group("task")
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument("--task", help="add3, reasoning_gym:NAME, or another of a recipe's tasks")
    which.add_argument("--data", help="a .jsonl, .csv or .parquet file of prompts and answers")
    add = group.add_argument
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="of the task, as TOML")
    add("--reward", help="of --data (default: last_number), or module:function")
    add("--chat", action="store_true", help="ask in the chat template, as one message of the user")
    add("--split", choices=SPLITS, help="of --task (default: held_out)")


def read_task(args: argparse.Namespace) -> Asked:
    """Raises ValueError for an unknown task, option or file, and for a file without rows."""
    options: dict[str, Any] = {}
    for item in args.option:
        override(options, item)
    if args.data is not None:
        return _data(args, options)
    if args.reward is not None:
        raise ValueError(f"--reward {args.reward}: belongs to --data; a task has its own")
    task = make_task(args.task, options)
    split: Split = args.split or "held_out"
    # Asked once here, so that a task without that split is told before a model is loaded.
    task.prompt(0, seed=args.seed, split=split)
    stream = (task.prompt(index, seed=args.seed, split=split) for index in count())
    named = ", ".join([args.task, *args.option])
    return Asked(name=named, questions=_asked(stream, args), endless=True, judge=Verdicts(task))


def _data(args: argparse.Namespace, options: dict[str, Any]) -> Asked:
    if args.split is not None:
        raise ValueError(f"--split {args.split}: belongs to --task; --data is asked whole")
    kind = Path(args.data).suffix.removeprefix(".")
    if kind not in READERS:
        known = ", ".join(f".{kind}" for kind in READERS if kind != "datasets")
        raise ValueError(f"--data {args.data}: must end in one of {known}")
    if args.reward is not None:
        options["reward"] = args.reward
    try:
        table = Table(kind, path=args.data, **options)
    except TypeError as error:
        raise ValueError(f"--option: {error}") from None
    stream = islice(
        (table.prompt(index, seed=args.seed, split="train") for index in count()), table.rows
    )
    name = ", ".join([Path(args.data).name, *filter(None, [args.reward]), *args.option])
    return Asked(name=name, questions=_asked(stream, args), endless=False, judge=Verdicts(table))


def _asked(stream: Iterator[Prompt], args: argparse.Namespace) -> Iterator[Prompt]:
    for prompt in stream:
        chat = args.chat and not prompt.messages
        yield replace(prompt, messages=(("user", prompt.text),)) if chat else prompt


@dataclass(frozen=True, slots=True)
class Verdicts:
    """A task's rewards; a response that none applies to gets the mean of its prompt's others."""

    task: Task

    def rewards(self, questions: Sequence[Any], texts: Sequence[str]) -> list[float]:
        judged, _ = judge(self.task, questions, texts)
        rewards: list[float] = []
        start = 0
        for at in range(1, len(questions) + 1):
            if at == len(questions) or questions[at] is not questions[start]:
                rewards += fill_skipped(judged[start:at], at - start)
                start = at
        return rewards

    def traits(self, text: str) -> Mapping[str, float]:
        return self.task.traits(text) if isinstance(self.task, Traits) else {}
