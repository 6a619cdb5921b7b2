"""Training runs that are killed with SIGKILL at random moments, and what they come to.

    python benchmarks/kill.py [--kills 20] [--seed 0] [--arms weights adapter sft ddp fsdp]

A run in a process of its own is killed and started again until it is done; where it is done before
so many kills are spent, there is another run. Half of the moments are drawn from the first third of
what a whole run takes, the other half from when something is being written. Every run ends in a new
interpreter or in a process that was not killed, and is compared with one that nobody disturbed: the
same files, every tensor, metric and sample equal to the last bit, nothing left over. `ddp` and
`fsdp` are two processes of which one is killed: the other must end by itself, and say why.

Appends to benchmarks/results/faults.jsonl and renders faults.md; nothing of an arm that differs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from findings import RESULTS, append, surroundings
from killed_run import PLACE, Arm, Kill, Moment, Run, differences

# Imported here once, so that what is forked need not.
from rlvr_decode.training import sft, trainer  # noqa: F401
from rlvr_decode.training.tasks.addition import Addition

SMALL = [
    "threads=1",
    "rollout.prompts=6",
    "rollout.group=4",
    "optim.steps=24",
    "evaluation={every=6, prompts=6, samples=2}",
    "checkpoint={every=2, keep=2}",
    "log={curves=false, samples=2}",
]
PRETRAIN = ["pretrain={steps=30, batch=16, checkpoint_every=5}"]


TWO = Arm(command=("train", "tiny"), settings=[*SMALL, *PRETRAIN], processes=2, share=0.3)
ARMS = {
    "weights": Arm(command=("train", "tiny"), settings=[*SMALL, *PRETRAIN]),
    "adapter": Arm(command=("train", "tiny-geora"), settings=[*SMALL, "base=pair:tiny"]),
    "sft": Arm(
        command=("sft", "tiny"), settings=[f"traces={PLACE}/traces.jsonl", "checkpoint_every=2"]
    ),
    "ddp": TWO,
    "fsdp": replace(TWO, settings=[*TWO.settings, "shard=true"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill training runs and compare what they make.")
    parser.add_argument("--kills", type=int, default=20, help="of each arm with one process")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-") as place:
        write_traces(Path(place))
        for name in arguments.arms:
            rng = random.Random(f"{arguments.seed}/{name}")
            record = campaign(name, Path(place), rng, arguments.kills)
            append(RESULTS / "faults.jsonl", record)
            (RESULTS / "faults.md").write_text(page(), encoding="utf-8")
    print(page())


def write_traces(place: Path) -> None:
    """Something to train on for the cold start."""
    task, rng = Addition(), random.Random(0)
    prompts = [task.prompt(index, seed=0, split="train") for index in range(480)]
    lines = [{"prompt": p.text, "response": task.demonstration(p, rng)} for p in prompts]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (place / "traces.jsonl").write_text(text, encoding="utf-8")


def campaign(name: str, place: Path, rng: random.Random, kills: int) -> dict[str, Any]:
    """What was killed, for the record; SystemExit if a run came out different."""
    arm = ARMS[name]
    wanted = max(1, round(kills * arm.share))
    started = time.monotonic()
    whole = Run(arm, place / name / "whole")
    whole.finish()
    found: list[Kill] = []
    runs = 0
    while len(found) < wanted:
        runs += 1
        run = Run(arm, place / name / f"run-{runs}")
        while len(found) < wanted:
            when = moment(rng, whole.seconds_at_work)
            if (kill := run.kill(when, rng.randrange(arm.processes))) is None:
                break
            print(f"{name}: {kill}", file=sys.stderr)
            found.append(kill)
        else:
            run.finish()
        if different := differences(whole.directory, run.directory):
            raise SystemExit(f"{name}, run {runs}: not the same: {', '.join(different)}")
    return {
        **surroundings(),
        "arm": name,
        "processes": arm.processes,
        "runs": runs,
        "kills": [asdict(kill) for kill in found],
        "seconds": time.monotonic() - started,
    }


def moment(rng: random.Random, life: float) -> Moment:
    """Some time in a third of a run's life, or just after something began to be written."""
    if rng.random() < 0.5:
        return Moment(delay=rng.uniform(0, life / 3))
    return Moment(delay=rng.choice((0, rng.uniform(0, 0.02))), write=rng.randint(1, 4))


def page() -> str:
    """The newest record of each arm, as Markdown."""
    text = (RESULTS / "faults.jsonl").read_text(encoding="utf-8")
    newest = {record["arm"]: record for record in map(json.loads, text.splitlines())}
    records = [newest[name] for name in ARMS if name in newest]
    lines = [
        "# Training runs that are killed",
        "",
        "Written by `python benchmarks/kill.py`: SIGKILL at random moments, and the run started",
        "again, until it is done. Every finished run is equal, file by file and bit by bit, to one",
        "that nobody disturbed; only the time it took is left out.",
        "",
        "| run | processes | kills | … while writing | runs | the other process ended after |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        kills = record["kills"]
        left = [kill["left"] for kill in kills]
        ended = f"{statistics.median(left):.1f} s (at most {max(left):.1f} s)"
        writing = sum(bool(kill["writing"]) for kill in kills)
        lines.append(
            f"| {record['arm']} | {record['processes']} | {len(kills)} | {writing} "
            f"| {record['runs']} | {ended if record['processes'] > 1 else '–'} |"
        )
    for record in records:
        versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
        where = f"{record['device']}, load {record['load']}, {versions}, {record['date'][:10]}."
        lines += ["", f"## {record['arm']}", "", where, ""]
        lines += ["| killed after | half written |", "|---|---|"]
        lines += [f"| {kill['after']} | {kill['writing'] or '–'} |" for kill in record["kills"]]
        for message in sorted({kill["message"] for kill in record["kills"]} - {""}):
            lines += ["", f"The process that was left said: {message}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
