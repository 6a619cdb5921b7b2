"""Cold start: one epoch of supervised training on collected traces.

Next-token cross-entropy on the response alone, stitched probes included, as MRPO does before its
reinforcement learning (arXiv 2602.02545); its learning rate and batch are not known. Reads the
JSONL of `soe`, or any with "prompt" and "response", and leaves a checkpoint to start a recipe from.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from tqdm import tqdm

from rlvr_decode.training.config import Optim, Train
from rlvr_decode.training.policy.model import open_model, save_model
from rlvr_decode.training.policy.optim import adamw, set_lr
from rlvr_decode.training.recipe import read_recipe
from rlvr_decode.training.run.checkpoint import Checkpoints, appearing_whole
from rlvr_decode.training.run.directory import claim
from rlvr_decode.training.run.disk import SaveError
from rlvr_decode.training.run.lock import held
from rlvr_decode.training.run.metrics import MetricsLog
from rlvr_decode.training.tasks.traces import Trace, encode, read_traces


@dataclass(frozen=True, kw_only=True, slots=True)
class SFT:
    """One cold start."""

    name: str
    """Of the run's directory."""
    base: str
    """Checkpoint directory, hub id, or pair:NAME for a pair's base to start from."""
    traces: str
    """JSONL, one {"prompt": …, "response": …} a line; other keys are provenance."""
    out: str = "runs"
    seed: int = 0
    epochs: int = 1
    batch: int = 32
    """Traces per optimiser step; the last batch of an epoch may be smaller."""
    lr: float = 1e-5
    warmup: int = 5
    max_grad_norm: float = 1.0
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")


def train_on_traces(config: SFT) -> Path:
    """Returns the directory of the trained checkpoint; resumes, and returns at once when done."""
    directory = Path(config.out) / config.name
    target = directory / "model"
    with held(directory):
        claim(cast(Train, config))
        if not target.exists():
            learn(config, directory, target)
    return target


def learn(config: SFT, directory: Path, target: Path) -> None:
    """The loop, from the newest checkpoint to the finished model."""
    traces = read_traces(Path(config.traces))
    model, tokenizer = open_model(config.base)
    optimizer = adamw(model, Optim(lr=config.lr))
    checkpoints = Checkpoints(directory=directory / "checkpoints", keep=1)
    log = MetricsLog(directory / "metrics.jsonl")
    done = (checkpoints.restore(model, [optimizer]) or {"step": 0})["step"]
    log.rewind(done)

    steps = list(enumerate(batches(traces, config), start=1))
    model.train()
    for step, batch in tqdm(steps[done:], "sft", len(steps), initial=done):
        set_lr([optimizer], config.lr * min(1.0, step / max(config.warmup, 1)))
        inputs_BT, labels_BT = encode(batch, tokenizer)
        loss = model(input_ids=inputs_BT, labels=labels_BT).loss
        if not torch.isfinite(loss):
            raise FloatingPointError(f"sft step {step}: loss is {loss.item()}; lower lr")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        log.write(step, {"loss": loss.item(), "traces": len(batch)})
        if step % config.checkpoint_every == 0:
            checkpoints.save(model, [optimizer], {"step": step})
    with appearing_whole(target) as scratch:
        save_model(model, tokenizer, scratch)


def batches(traces: Sequence[Trace], config: SFT) -> list[list[Trace]]:
    """The traces of each optimiser step, every epoch in its own seeded order."""
    found = []
    for epoch in range(config.epochs):
        order = list(traces)
        random.Random(f"sft/{config.seed}/{epoch}").shuffle(order)
        found += [order[at : at + config.batch] for at in range(0, len(order), config.batch)]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Train on traces and print where the checkpoint is; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="rlvr-decode sft", description="One epoch of supervised training on traces."
    )
    parser.add_argument("recipe", help="a TOML file, or the name of a bundled recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. lr=1e-5")
    arguments = parser.parse_intermixed_args(argv)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        checkpoint = train_on_traces(read_recipe(SFT, "sft", arguments.recipe, arguments.overrides))
    except (ValueError, FloatingPointError, SaveError) as error:
        print(f"rlvr-decode sft: {error}", file=sys.stderr)
        return 2
    print(checkpoint)
    return 0
