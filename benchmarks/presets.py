"""The main objectives on the tiny task: accuracy, coverage and entropy over three seeds.

    python benchmarks/presets.py [--presets grpo dapo …] [--seeds 0 1 2] [--minutes 9]

Every run starts at the bundled pair's base and differs from the others in its preset and seed
alone; presets keep their papers' settings, and no learning rate is tuned for any of them. Each run
appends one JSON line to benchmarks/results/presets.jsonl; runs that are there already are not
repeated, so an interrupted table goes on where it was. The table in presets.md is made of all.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from rlvr_decode.pair import Pair
from rlvr_decode.training.config import Checkpoint, Evaluation, Objective, Train, load
from rlvr_decode.training.policy.model import open_model
from rlvr_decode.training.rollout.rollout import TransformersRollout
from rlvr_decode.training.tasks.addition import Addition
from rlvr_decode.training.trainer import train_recipe

RESULTS = Path(__file__).parent / "results"
PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"max_tokens": 40},
    "dapo": {},
    "gspo": {},
    "rloo": {},
    "maxrl": {},
    "pass_at_k": {},
    "nsr": {},
    "w_reinforce": {},
    "reweight": {},
    "lpo_fwd": {},
    "lpo_rev": {},
}
BASE = "base"
SEEDS = (0, 1, 2)
STEPS, TOKENS = 16, 40  # GRPO is near the top after 40 steps, where nothing can be told apart
SAMPLES, ASKED, ASKED_SEED = 16, 256, 3003
CHUNK = 64  # prompts evaluated at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=[BASE, *PRESETS], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.results.mkdir(exist_ok=True)
    file = arguments.results / "presets.jsonl"
    started = time.monotonic()
    for seed in arguments.seeds:
        for preset in arguments.presets:
            if (preset, seed) in measured(file):
                continue
            if time.monotonic() - started > 60 * arguments.minutes:
                break
            line = json.dumps(run(preset, seed))
            print(line, flush=True)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(line + "\n")
    table = report(measured(file))
    (arguments.results / "presets.md").write_text(table, encoding="utf-8")
    print(table)


def run(preset: str, seed: int) -> dict[str, Any]:
    """Train one preset with one seed, and measure it."""
    before = time.perf_counter()
    found: dict[str, Any] = {"preset": preset, "seed": seed}
    if preset == BASE:
        found |= measure(Pair.open("tiny").base.fetch(), seed)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            pair = train_recipe(settings(preset, seed, scratch))
            log = [json.loads(line) for line in (pair.parent / "metrics.jsonl").open()]
            found |= {
                "steps": STEPS,
                "clip_fraction": statistics.fmean(
                    line["clip_fraction"] for line in log if "clip_fraction" in line
                ),
            }
            found |= measure(pair.parent / "rlvr", seed)
    return found | {"seconds": round(time.perf_counter() - before, 1)} | about()


def settings(preset: str, seed: int, out: str) -> Train:
    """The recipe `tiny-grpo` from the bundled base, with another objective."""
    recipe = load("tiny-grpo")
    return replace(
        recipe,
        name=f"{preset}-{seed}",
        out=out,
        seed=seed,
        base=str(Pair.open("tiny").base.fetch()),
        objective=Objective(name=preset, options=PRESETS[preset]),
        optim=replace(recipe.optim, steps=STEPS),
        evaluation=Evaluation(),
        checkpoint=Checkpoint(every=STEPS),
        kl_to_base=False,
    )


def measure(checkpoint: Path | str, seed: int) -> dict[str, float]:
    """pass@1, pass@16, entropy per token and length, at temperature 1 on held-out prompts."""
    model, tokenizer = open_model(checkpoint)
    engine, task = TransformersRollout(model=model, tokenizer=tokenizer), Addition()
    prompts = [task.prompt(i, seed=ASKED_SEED, split="held_out") for i in range(ASKED)]
    right, surprise, tokens = [], 0.0, 0
    for start in range(0, ASKED, CHUNK):
        asked = prompts[start : start + CHUNK]
        rollouts = engine.sample(
            [prompt.text for prompt in asked],
            group=SAMPLES,
            max_new_tokens=TOKENS,
            temperature=1.0,
            seed=1000 * seed + start,
        )
        surprise -= rollouts.logp_BT.sum().item()
        tokens += int(rollouts.mask_BT.sum())
        for number, prompt in enumerate(asked):
            texts = rollouts.texts[number * SAMPLES : (number + 1) * SAMPLES]
            right.append(sum(task.reward(prompt, text) for text in texts))
    return {
        "pass@1": statistics.fmean(right) / SAMPLES,
        f"pass@{SAMPLES}": statistics.fmean(count > 0 for count in right),
        # −log p of the sampled tokens is an unbiased estimate of the policy's entropy.
        "entropy": surprise / tokens,
        "tokens": tokens / (ASKED * SAMPLES),
    }


def measured(file: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The runs that are written down, by preset and seed."""
    if not file.exists():
        return {}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {(line["preset"], line["seed"]): line for line in lines}


def report(runs: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Means over seeds with their standard errors, as Markdown."""
    columns = ("pass@1", f"pass@{SAMPLES}", "entropy", "clip_fraction")
    head = [
        "preset",
        "seeds",
        "pass@1, %",
        f"pass@{SAMPLES}, %",
        "entropy, nats per token",
        "clipped, %",
    ]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for preset in (BASE, *PRESETS):
        lines = [line for (name, _), line in sorted(runs.items()) if name == preset]
        if lines:
            scales = (100, 100, 1, 100)
            cells = [
                cell([scale * line[key] for line in lines if key in line], scale)
                for key, scale in zip(columns, scales, strict=True)
            ]
            rows.append([preset, str(len(lines)), *cells])
    return (
        "# Objectives on the tiny task\n\n"
        f"From the bundled base, {STEPS} batches of 32 prompts × 8 responses, two optimiser steps "
        "each, one learning rate for all; "
        f"then {ASKED} held-out prompts × {SAMPLES} samples at temperature 1. "
        "Mean ± standard error over seeds.\n\n"
        + "\n".join("| " + " | ".join(row) + " |" for row in rows)
        + "\n"
    )


def cell(values: list[float], scale: int) -> str:
    """The mean with its standard error, in one decimal of percent or three of nats."""
    if not values:
        return "–"
    digits = 1 if scale == 100 else 3
    if len(values) == 1:
        return f"{values[0]:.{digits}f} (one seed)"
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.{digits}f} ± {error:.{digits}f}"


def about() -> dict[str, str]:
    """When, from which commit and on what a run was made."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip(),
        "device": f"CPU {platform.machine()}, {torch.get_num_threads()} thread",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
