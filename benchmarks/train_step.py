"""A step of GRPO, sampling included: our seconds and memory beside those of TRL's GRPOTrainer.

    pip install --no-deps --target trl-1.16 trl==1.16
    PYTHONPATH=trl-1.16 python benchmarks/train_step.py [--rounds 1 --steps 3 --threads 1]

The same random Qwen3-shaped model, prompts, group size, response length, micro-batch, optimiser
and objective in float32; arms take turns, each in a process of its own, whose first step is not
timed and whose peak resident memory is read at its end. Beside the wall clock stands the processor
time, which other work on the machine changes little. Both trainers run with and without gradient
checkpointing, which TRL has on by default and we off. First one batch with drifted log-probs goes
through both losses: unless they and their gradients agree, nothing is measured. Each process adds a
line to benchmarks/results/train_step.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from findings import RESULTS, Finding, add_argument, append, ratios, surroundings, tell
from train_step_arms import Work, check, run_ours, run_trl
from transformers.utils import logging

from rlvr_decode.testing import make_checkpoints

SHAPE: dict[str, Any] = {
    "base_vocab": 32_000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
ARMS = ("ours", "trl", "ours+checkpointing", "trl+checkpointing")
# The second holds each trainer's defaults against the other's.
PAIRS = (
    ("ours", "trl"),
    ("ours", "trl+checkpointing"),
    ("ours+checkpointing", "trl+checkpointing"),
)
# Of TRL's time and memory.
TIME_BAR, MEMORY_BAR = 0.6, 0.8
LOSS_LIMIT, GRADIENT_LIMIT = 1e-5, 1e-4


def arm(name: str, work: Work) -> dict[str, Any]:
    """What one process measures."""
    torch.set_num_threads(work.threads)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if name == "check":
        return check(work)
    trainer, _, checkpointing = name.partition("+")
    run = {"ours": run_ours, "trl": run_trl}[trainer]
    clocks = run(work, checkpointing=bool(checkpointing))
    pairs = list(itertools.pairwise(clocks))
    return {
        "seconds": [round(end.wall - start.wall, 2) for start, end in pairs],
        "processor_seconds": [round(end.processor - start.processor, 2) for start, end in pairs],
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def in_its_own_process(name: str, work: Work) -> dict[str, Any]:
    """An arm's measurements, read from the last line that it prints."""
    command = [sys.executable, __file__, "--arm", name]
    for key in Work.__slots__:
        command += [f"--{key.replace('_', '-')}", str(getattr(work, key))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"arm {name} failed:\n{done.stderr[-3000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def compare(work: Work, rounds: int, arms: list[str], results: Path) -> list[Finding]:
    """Check, take turns, write down and print."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for turn in range(rounds):
        for name in (*(["check"] if turn == 0 else []), *(arms if turn % 2 == 0 else arms[::-1])):
            line = {"arm": name, **in_its_own_process(name, work), **about(work)}
            print(json.dumps(line), flush=True)
            if name == "check" and (
                line["loss_difference"] > LOSS_LIMIT or line["gradient_difference"] > GRADIENT_LIMIT
            ):
                raise SystemExit("the losses disagree: no timing is reported")
            append(results / "train_step.jsonl", line)
            lines.setdefault(name, []).append(line)
    table = report(work, lines)
    (results / "train_step.md").write_text(table, encoding="utf-8")
    print(table)
    return [
        found
        for mine, other in PAIRS
        if mine in lines and other in lines
        for found in beside(mine, lines[mine], other, lines[other])
    ]


def beside(
    mine: str, ours: list[dict[str, Any]], other: str, theirs: list[dict[str, Any]]
) -> list[Finding]:
    """Time and memory of an arm over another's; steps in the order in which they were taken."""
    seconds = [[s for line in lines for s in line["seconds"]] for lines in (ours, theirs)]
    peaks = [[line["peak_mb"] for line in lines] for lines in (ours, theirs)]
    arm, rival = (each.replace("+", ", ") for each in (mine, other.replace("trl", "TRL")))
    what = "step of GRPO" if arm == "ours" else f"step of GRPO{arm.removeprefix('ours')}"
    measured = {"time": (seconds, TIME_BAR), "peak memory": (peaks, MEMORY_BAR)}
    return [
        Finding(what=f"{what}: {which}", rival=rival, values=ratios(*values), at_most=bar)
        for which, (values, bar) in measured.items()
    ]


def about(work: Work) -> dict[str, Any]:
    """What a line was measured with; where the model happens to lie says nothing."""
    settings = {key: getattr(work, key) for key in Work.__slots__ if key != "base"}
    return {"model": SHAPE, "work": settings, **surroundings(), "threads": work.threads}


def report(work: Work, lines: dict[str, list[dict[str, Any]]]) -> str:
    """Medians over all timed steps, and ours over TRL's, as Markdown."""
    (check,) = lines["check"]
    found: dict[str, tuple[float, float, int]] = {}
    for name in ARMS:
        if name in lines:
            wall, busy = (
                statistics.median([s for line in lines[name] for s in line[key]])
                for key in ("seconds", "processor_seconds")
            )
            found[name] = wall, busy, max(line["peak_mb"] for line in lines[name])
    rows = [
        f"| {name} | {busy:.1f} | {wall:.1f} | {peak} |"
        for name, (wall, busy, peak) in found.items()
    ]
    compared = [
        f"- {mine} over {other}: {found[mine][1] / found[other][1]:.2f} of the processor time, "
        f"{found[mine][0] / found[other][0]:.2f} of the wall clock, "
        f"{found[mine][2] / found[other][2]:.2f} of the memory"
        for mine, other in PAIRS
        if mine in found and other in found
    ]
    return (
        "# A step of GRPO, ours and TRL's\n\n"
        f"{work.prompts} × {work.group} responses of {work.response_tokens} tokens to prompts of "
        f"{work.prompt_tokens}, micro-batches of {work.micro_batch}, float32, threads: "
        f"{work.threads}, TRL {check['versions']['trl']}, torch {check['versions']['torch']}. On "
        f"one drifted batch the losses differ by {check['loss_difference']:.0e} and the gradients "
        f"by {check['gradient_difference']:.0e} of their norm. Medians over steps; the peak is the "
        "process's, libraries included.\n\n"
        "| arm | processor seconds per step | wall-clock seconds | peak memory, MB |\n"
        "| --- | ---: | ---: | ---: |\n" + "\n".join([*rows, "", *compared, ""])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="timed, in each process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--response-tokens", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    add_argument(parser)
    parser.add_argument("--arm", choices=(*ARMS, "check"), help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        base = arguments.base or str(make_checkpoints(Path(directory), **SHAPE)[0])
        values = {key: getattr(arguments, key) for key in Work.__slots__}
        work = Work(**values | {"base": base})
        if arguments.arm:
            print(json.dumps(arm(arguments.arm, work)))
        else:
            arguments.results.mkdir(exist_ok=True)
            found = compare(work, arguments.rounds, arguments.arms, arguments.results)
            tell(found, arguments.findings)


if __name__ == "__main__":
    main()
