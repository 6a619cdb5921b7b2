"""A run's directory: which recipe owns it, and what is written about how its pair was made."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import random
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

import rlvr_decode
from rlvr_decode.training.config import Train
from rlvr_decode.training.run.disk import saving

_FREE = ("log.", "checkpoint.", "process_time_out", "rollout.time_out")


def claim(config: Train) -> Path:
    """The directory of this run, made or found; one that another recipe made is refused.

    What a run tells, how often it is checkpointed and how long it waits may change when it is
    resumed.
    """
    directory = Path(config.out) / config.name
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "config.json"
    mine = json.loads(json.dumps(dataclasses.asdict(config)))
    if not file.exists():
        scratch = file.with_suffix(".tmp")
        with saving(file):
            scratch.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
            os.replace(scratch, file)
        return directory
    theirs, ours = _flat(json.loads(file.read_text(encoding="utf-8"))), _flat(mine)
    changed = sorted(k for k in theirs | ours if theirs.get(k) != ours.get(k))
    if changed := [key for key in changed if not key.startswith(_FREE)]:
        key = changed[0]
        raise ValueError(
            f"{directory} holds a run with other settings: {key}={theirs.get(key)!r} there, "
            f"{ours.get(key)!r} here; give this run another name=… or remove that directory"
        )
    return directory


def _flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flat(value, f"{where}{key}.") if isinstance(value, dict) else {where + key: value}
        flat.update(inner)
    return flat


def draw_seed(purpose: str, seed: int, step: int) -> int:
    """The seed of one random draw: of the run's seed and the step, and nothing else."""
    return random.Random(f"{purpose}/{seed}/{step}").getrandbits(63)


def provenance(config: Train, *, steps: int, accuracies: Mapping[str, Any]) -> dict[str, Any]:
    """Where a pair comes from: recipe, steps, accuracies, versions, commit."""
    return {
        "recipe": config.name,
        "task": config.task.name,
        "objective": config.objective.name,
        "seed": config.seed,
        "pretrain_steps": config.pretrain.steps if config.pretrain else None,
        "steps": steps,
        "accuracies": dict(accuracies),
        "versions": {
            "rlvr-decode": rlvr_decode.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout this runs from; an installed wheel has none."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
