"""Spectral orthogonal exploration and its controls, on the tiny task and on a text task.

    python benchmarks/soe.py [--tasks tiny swaps] [--seeds 0 1 2] [--runs DIR]

The same failed problems are reopened with the probe furthest out of the teacher's manifold, with a
random one, and with none. Every trace is judged once more from the file. Runs that are done are
not run again; what they found goes to benchmarks/results/soe.jsonl and soe.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rlvr_decode.pair import Pair
from rlvr_decode.training.config import load
from rlvr_decode.training.recipe import read_recipe
from rlvr_decode.training.soe.config import CHOICES, SOE
from rlvr_decode.training.soe.run import collect, read_records, summary
from rlvr_decode.training.tasks.data import make_task
from rlvr_decode.training.tasks.task import Prompt
from rlvr_decode.training.trainer import train_recipe

RESULTS = Path(__file__).parent / "results"
TASKS = ("tiny", "swaps")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        explored(task, choice, seed, args.runs)
        for task in args.tasks
        for seed in args.seeds
        for choice in CHOICES
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (RESULTS / "soe.jsonl").write_text(text, encoding="utf-8")
    (RESULTS / "soe.md").write_text(markdown(lines), encoding="utf-8")


def configured(task: str, choice: str, seed: int, runs: Path) -> SOE:
    """The bundled recipe of a task with one way to choose probes; its models are made if needed."""
    teacher = Pair.open("tiny").base.fetch() if task == "tiny" else base_of(task, runs)
    name = f"soe-{task}-{choice}-{seed}"
    config = read_recipe(SOE, "soe", task, [f"name={name}", f"out={runs}", f"seed={seed}"])
    return replace(
        config,
        teacher=str(teacher),
        student=str(base_of(f"{task}-student", runs)),
        search=replace(config.search, choice=choice),
    )


def base_of(recipe: str, runs: Path) -> Path:
    """The pretrained model of a recipe."""
    return train_recipe(load(recipe, [f"out={runs}", "threads=1"])).parent / "base"


def explored(task: str, choice: str, seed: int, runs: Path) -> dict[str, Any]:
    """What one run found; raises ValueError for a trace that does not verify."""
    config = configured(task, choice, seed, runs)
    traces = collect(config)
    judge = make_task(config.task.name, config.task.options)
    for line in traces.read_text(encoding="utf-8").splitlines():
        trace = json.loads(line)
        if (
            judge.reward(Prompt(text=trace["prompt"], answer=trace["answer"]), trace["response"])
            < 1
        ):
            raise ValueError(f"{traces}: {trace['response']!r} does not verify")
    found = {"task": task, "choice": choice, "seed": seed, "problems": config.problems}
    found |= summary(read_records(traces.parent))
    print(found, flush=True)
    return found


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """A table: sums of counts and means of Ω over seeds."""
    heads = "| task | probe | failed | solved | share | traces | Ω stitched | Ω of all probes |"
    rows = [heads, "|" + "---|" * 8]
    for task in dict.fromkeys(line["task"] for line in lines):
        for choice in CHOICES:
            mine = [x for x in lines if (x["task"], x["choice"]) == (task, choice)]
            failed, solved, traces = (
                sum(int(x[key]) for x in mine) for key in ("failed", "solved", "traces")
            )
            stitched, everyone = (
                mean(x.get(key) for x in mine) for key in ("omega_chosen", "omega_all")
            )
            rows.append(
                f"| {task} | {choice} | {failed} | {solved} | {solved / failed:.3f} | {traces} "
                f"| {stitched} | {everyone} |"
            )
    seeds = sorted({line["seed"] for line in lines})
    return (
        "# Spectral orthogonal exploration\n\n`benchmarks/soe.py`, seeds "
        f"{', '.join(map(str, seeds))} added up; every trace verifies.\n\n" + "\n".join(rows) + "\n"
    )


def mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.3f}" if known else "–"


if __name__ == "__main__":
    main()
