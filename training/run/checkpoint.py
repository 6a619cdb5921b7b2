"""Checkpoints that survive a crash: trainable weights, optimizer state, and the place in the run.

A checkpoint is a directory that appears whole or not at all: written beside its place, flushed,
renamed. Safetensors and JSON only. There is no random state to keep, because every draw of a step
is seeded by the run's seed and the step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlvr_decode.training.processes.sharding import full_tensors, like
from rlvr_decode.training.run.disk import saving

_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoints:
    """The checkpoints of one run, newest `keep` of them (0 keeps all).

    writes  whether this process writes them; of several that share a model, one does.
    """

    directory: Path
    keep: int
    writes: bool = True

    def save(
        self, model: nn.Module, optimizers: list[torch.optim.Optimizer], state: Mapping[str, Any]
    ) -> Path:
        """Write a checkpoint named by `state["step"]`; anything else in `state` is JSON."""
        target = self.directory / f"step-{state['step']:06d}"
        weights = full_tensors(_trainable(model), keep=self.writes)
        moments = full_tensors(_optimizer_tensors(model, optimizers), keep=self.writes)
        if not self.writes:
            return target
        with appearing_whole(target) as scratch:
            save_file(weights, scratch / _WEIGHTS)
            save_file(moments, scratch / _OPTIMIZER)
            digests = {name: _sha256(scratch / name) for name in (_WEIGHTS, _OPTIMIZER)}
            (scratch / _STATE).write_text(json.dumps({**state, "sha256": digests}, indent=1))
        for old in self._finished()[: -self.keep] if self.keep else []:
            shutil.rmtree(old)
        return target

    def restore(
        self, model: nn.Module, optimizers: list[torch.optim.Optimizer]
    ) -> dict[str, Any] | None:
        """Load the newest checkpoint in place and return its state; None if there is none."""
        if not (found := self._finished()):
            return None
        newest = found[-1]
        state = _read_state(newest)
        _load_weights(model, load_file(newest / _WEIGHTS), newest)
        _load_optimizers(model, optimizers, load_file(newest / _OPTIMIZER))
        return state

    def _finished(self) -> list[Path]:
        return sorted(path for path in self.directory.glob("step-*") if path.suffix == "")


@contextmanager
def appearing_whole(target: Path) -> Iterator[Path]:
    """A scratch directory that becomes `target` at the end, flushed to disk, or never does.

    Raises SaveError if it cannot be written; what it took is then free again.
    """
    scratch = target.with_name(target.name + ".tmp")
    with saving(target):
        for stale in (scratch, target):
            if stale.exists():
                shutil.rmtree(stale)
        scratch.mkdir(parents=True)
        try:
            yield scratch
            for path in (*scratch.rglob("*"), scratch):
                _flush(path)
            os.rename(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        _flush(target.parent)


def _read_state(checkpoint: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files are as they were written; ValueError if one is not."""

    def damaged(name: str, how: str) -> ValueError:
        return ValueError(
            f"{checkpoint / name}: is damaged ({how}); "
            f"remove {checkpoint.name} to resume from the checkpoint before it"
        )

    for name in (_STATE, _WEIGHTS, _OPTIMIZER):
        if not (checkpoint / name).is_file():
            raise damaged(name, "it is gone")
    try:
        state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text())
        digests = state.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise damaged(_STATE, "it is not what was written") from error
    for name, digest in digests.items():
        if _sha256(checkpoint / name) != digest:
            raise damaged(name, "its sha256 has changed")
    return state


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _load_weights(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    weights = _trainable(model)
    if different := sorted(weights.keys() ^ tensors.keys()):
        raise ValueError(f"{source}: is of another model; {different[0]} is in only one of them")
    for name, weight in weights.items():
        if weight.shape != tensors[name].shape:
            raise ValueError(
                f"{source}: is of another model; {name} is {list(tensors[name].shape)} there "
                f"and {list(weight.shape)} here"
            )
        weight.copy_(like(tensors[name], weight))


def _optimizer_tensors(
    model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Every optimizer's state as `parameter.key`; a parameter belongs to one optimizer."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _load_optimizers(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for key, value in tensors.items():
        name, _, slot = key.rpartition(".")
        parameter = parameters[name]
        # A count of steps is no moment, and stays as it is.
        moment = value.shape == parameter.shape
        owner[parameter].state[parameter][slot] = like(value, parameter) if moment else value
