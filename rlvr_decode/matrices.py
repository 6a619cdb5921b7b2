"""The weights of a pair, one at a time: the same tensor before and after training.

Reads safetensors directories, full weights or plain LoRA, and never a whole model at once.

M, N  rows and columns of a weight
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlvr_decode.lora import lora_keys, lora_scaling, read_lora_config
from rlvr_decode.weights import Weights

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Their rows are tokens; rows beyond the tokenizer's are padding that a pair may differ in.
VOCABULARY_LAYERS = ("embed_tokens", "lm_head")
_HEAD = "lm_head.weight"


class MatrixPair(NamedTuple):
    """A weight in base and in rlvr, in the dtype each is stored in; float32 for an adapter's."""

    name: str
    base_MN: Tensor
    rlvr_MN: Tensor


def matrix_pairs(
    base: str | Path, rlvr: str | Path, *, layers: tuple[str, ...] = LINEAR_LAYERS
) -> Iterator[MatrixPair]:
    """Every weight of the named layers in both checkpoints, in the order of their names.

    base    a directory of full weights.
    rlvr    another, or a LoRA directory on that base: base + scaling · B A in float32.
    layers  last part of the layers' names.

    Raises ValueError naming a weight that is missing on one side or has two shapes.
    """
    names = [name for name in Weights.open(base) if layer_of(name) in layers]
    if not names:
        raise ValueError(f"{base}: no weights of {', '.join(layers)}")
    yield from _pairs(base, rlvr, names)


def weight_pairs(base: str | Path, rlvr: str | Path) -> Iterator[MatrixPair]:
    """Every tensor of both checkpoints, norms, embeddings and biases too, by name.

    Base's embeddings and head have rlvr's rows: those it has not are taken from rlvr, those it
    has beyond are left out. A head that only one side stores is its embeddings again, and is
    left out as well. Raises ValueError like `matrix_pairs`, and for quantised weights.
    """
    ours, theirs = Weights.open(base), Weights.open(rlvr)
    names = set(ours)
    if read_lora_config(Path(rlvr)) is None:
        # Which checkpoints differ in this the tie key of their configs says, and they agree.
        names -= {_HEAD} - set(theirs)
        if only := sorted(set(theirs) - names - {_HEAD}):
            raise ValueError(f"{only[0]}: in {rlvr}, but not in {base}; the two are not one model")
    else:
        layers = (name.removesuffix(".weight") for name in names)
        if only := sorted(set(theirs) - {key for layer in layers for key in lora_keys(layer)}):
            raise ValueError(f"{only[0]}: in {rlvr}, but {base} has no such layer")
    yield from _pairs(base, rlvr, sorted(names))


def count_weights(directory: str | Path) -> int:
    """How many tensors a checkpoint holds, for progress bars."""
    return len(Weights.open(directory).files)


def count_parameters(directory: str | Path) -> int:
    """How many numbers a checkpoint holds."""
    weights = Weights.open(directory)
    return sum(math.prod(weights.shape(name)) for name in weights)


def layer_of(name: str) -> str | None:
    """The last part of the layer's name, of a parameter called `….LAYER.weight`."""
    path, _, leaf = name.rpartition(".")
    return path.rpartition(".")[2] if leaf == "weight" else None


def _pairs(base: str | Path, rlvr: str | Path, names: Iterable[str]) -> Iterator[MatrixPair]:
    ours, theirs = Weights.open(base), Weights.open(rlvr)
    lora = read_lora_config(Path(rlvr))
    for name in names:
        base_MN = ours.read(name)
        if lora is not None:
            rlvr_MN = _with_lora(base_MN.float(), name, lora, theirs)
        elif name in theirs:
            rlvr_MN = theirs.read(name)
        else:
            raise ValueError(f"{name}: in base, but not in {rlvr}")
        if layer_of(name) in VOCABULARY_LAYERS:
            rows = min(len(base_MN), len(rlvr_MN))
            base_MN = torch.cat([base_MN[:rows], rlvr_MN[rows:].to(base_MN.dtype)])
        if base_MN.shape != rlvr_MN.shape:
            shapes = f"{tuple(base_MN.shape)} in base, {tuple(rlvr_MN.shape)} in rlvr"
            raise ValueError(f"{name}: {shapes}; the two are not one model")
        for tensor in (base_MN, rlvr_MN):
            if not tensor.is_floating_point() or tensor.element_size() == 1:
                raise ValueError(f"{name}: {tensor.dtype}; quantised weights have no plain delta")
        yield MatrixPair(name, base_MN, rlvr_MN)


def _with_lora(base_MN: Tensor, name: str, config: dict[str, Any], adapter: Weights) -> Tensor:
    """The weight with its update, or as it is where the adapter leaves the layer alone."""
    layer = name.removesuffix(".weight")
    keys = lora_keys(layer)
    if not any(key in adapter for key in keys):
        return base_MN
    A_RN, B_MR = (adapter.read(key).float() for key in keys)
    return base_MN + lora_scaling(config, layer, A_RN.shape[0]) * (B_MR @ A_RN)
