"""An SOE run on disk: resumable, with a progress bar, ending in one JSONL file of traces."""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from rlvr_decode.training.config import Train
from rlvr_decode.training.policy.model import open_model
from rlvr_decode.training.recipe import read_recipe
from rlvr_decode.training.rewards.judging import RewardError
from rlvr_decode.training.run.directory import claim, draw_seed
from rlvr_decode.training.run.disk import SaveError, saving
from rlvr_decode.training.run.lock import held
from rlvr_decode.training.run.metrics import MetricsLog
from rlvr_decode.training.soe.config import SOE
from rlvr_decode.training.soe.explore import Problem, explore
from rlvr_decode.training.soe.generator import Generator, TransformersGenerator
from rlvr_decode.training.tasks.data import make_task
from rlvr_decode.training.tasks.task import Task

FILE = "traces.jsonl"


def main(argv: Sequence[str] | None = None) -> int:
    """Collect traces and print where they are; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="rlvr-decode soe",
        description="Collect verified traces on problems the teacher fails, by spectral "
        "orthogonal exploration.",
        epilog="A run that was stopped goes on where it was when the same command is given again.",
    )
    parser.add_argument("recipe", help="a TOML file, or the name of a bundled recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. search.choice=random"
    )
    arguments = parser.parse_intermixed_args(argv)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        traces = collect(read_recipe(SOE, "soe", arguments.recipe, arguments.overrides))
    except (ValueError, RewardError, SaveError) as error:
        print(f"rlvr-decode soe: {error}", file=sys.stderr)
        return 2
    print(json.dumps(summary(read_records(traces.parent)), indent=1))
    print(traces)
    return 0


def collect(
    config: SOE, *, teacher: Generator | None = None, student: Generator | None = None
) -> Path:
    """Run SOE over the configured problems; returns the path of `traces.jsonl`.

    Everything lives in `out/name`. `problems.jsonl` gets one line per `problems_at_once` problems
    as soon as they are done, and a run that is started again goes on after its last whole line,
    with the same draws. The models are the configured checkpoints unless given.
    """
    directory = Path(config.out) / config.name
    with held(directory):
        claim(cast(Train, config))
        log = MetricsLog(directory / "problems.jsonl")
        done = len(log.read())
        log.rewind(done)
        task = make_task(config.task.name, config.task.options)
        starts = range(config.first, config.first + config.problems, config.problems_at_once)
        if done < len(starts):
            teacher = teacher or _open(config.teacher, config)
            student = student or _open(config.student, config)
            with tqdm(desc="soe", total=config.problems, unit="problem") as bar:
                bar.update(min(done * config.problems_at_once, config.problems))
                for chunk, start in enumerate(starts[done:], start=done + 1):
                    records = _explore(config, task, start, teacher, student)
                    log.write(chunk, {"problems": records})
                    bar.update(len(records))
                    bar.set_postfix(traces=sum(len(r["traces"]) for r in read_records(directory)))
        return _export(config, directory)


def read_records(directory: Path) -> list[dict[str, Any]]:
    """The records of all problems done so far, as `explore` made them."""
    lines = MetricsLog(directory / "problems.jsonl").read()
    return [record for line in lines for record in line["problems"]]


def summary(records: Iterable[dict[str, Any]]) -> dict[str, float]:
    """What a run found: how many problems failed, how many of those it solved, and by which Ω."""
    failed = [record for record in records if record["failed"]]
    cuts = [cut for record in failed for cut in record["cuts"] if cut["chosen"] is not None]
    found: dict[str, float] = {
        "failed": len(failed),
        "solved": sum(bool(record["traces"]) for record in failed),
        "traces": sum(len(record["traces"]) for record in failed),
        "cuts": sum(len(record["cuts"]) for record in failed),
    }
    if cuts:
        found["omega_chosen"] = statistics.fmean(cut["chosen"] for cut in cuts)
        found["omega_all"] = statistics.fmean(omega for cut in cuts for omega in cut["omegas"])
    return found


def _open(source: str, config: SOE) -> TransformersGenerator:
    model, tokenizer = open_model(source)
    return TransformersGenerator(model, tokenizer, batch=config.batch, layer=config.layer)


def _explore(
    config: SOE, task: Task, start: int, teacher: Generator, student: Generator
) -> list[dict[str, Any]]:
    """The records of the problems whose model calls are batched together, from number `start`."""
    end = min(start + config.problems_at_once, config.first + config.problems)
    problems = [
        Problem(index=i, prompt=task.prompt(i, seed=config.seed, split="train"))
        for i in range(start, end)
    ]
    seed = draw_seed("soe", config.seed, start)
    return explore(problems, task, teacher, student, config.search, seed=seed)


def _export(config: SOE, directory: Path) -> Path:
    """Every trace as a line {"prompt", "response", "answer", "provenance"}; appears whole."""
    common = {
        "recipe": config.name,
        "task": config.task.name,
        "teacher": config.teacher,
        "student": config.student,
        "choice": config.search.choice,
        "seed": config.seed,
    }
    lines = [
        {
            "prompt": record["prompt"],
            "response": trace["response"],
            "answer": record["answer"],
            "provenance": common
            | {"index": record["index"]}
            | {name: trace[name] for name in ("kept", "probe", "omega", "dimensions")},
        }
        for record in read_records(directory)
        for trace in record["traces"]
    ]
    path, scratch = directory / FILE, directory / f"{FILE}.tmp"
    with saving(path):
        scratch.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        os.replace(scratch, path)
    return path
