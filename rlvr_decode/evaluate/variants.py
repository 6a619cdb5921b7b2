"""The checkpoints of the arms that are not the pair itself, written where any engine opens them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rlvr_decode.derive import copy_configs
from rlvr_decode.evaluate.arms import PAIR, WEIGHTS, Arm
from rlvr_decode.matrices import weight_pairs
from rlvr_decode.pair import Checkpoint, Pair
from rlvr_decode.weight_extrapolation import extrapolate, merge
from rlvr_decode.weights import write_weights


def variant_of(pair: Pair, arm: Arm, directory: Path) -> Pair:
    """The pair that an arm's engine opens; a variant's new checkpoints go to `directory`."""
    kind, strength = arm.checkpoints
    if kind == PAIR:
        return pair
    if kind == WEIGHTS:
        return extrapolate(pair, directory / "extrapolated", strength=strength).pair
    full = merge(pair, directory / "merged").pair if pair.rlvr.kind == "adapter" else pair
    base = directory / "base"
    base.mkdir(parents=True)
    copy_configs(full.tokenizer_directory, base, dtype=None)
    write_weights(base, _with_shuffled_update(full))
    return replace(full, base=Checkpoint(directory=base))


def _with_shuffled_update(pair: Pair) -> Iterator[tuple[str, Tensor]]:
    """θ_rlvr − the update with each tensor's entries shuffled: as far away, and nowhere."""
    generator = torch.Generator().manual_seed(0)
    for name, base, rlvr in weight_pairs(pair.base.fetch(), pair.rlvr.fetch()):
        update = (rlvr.float() - base.float()).flatten()
        order = torch.randperm(update.numel(), generator=generator)
        yield name, (rlvr.float() - update[order].view_as(rlvr)).to(rlvr.dtype)
