"""The matrices of a pair, one at a time: the same weight before and after training.

Reads safetensors directories, full weights or plain LoRA, and never a whole model at once.

M, N  rows and columns of a weight
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor

from rlvr_decode.lora import lora_keys, lora_scaling, read_lora_config

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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
    base, rlvr = Path(base), Path(rlvr)
    base_files, rlvr_files = _tensor_files(base), _tensor_files(rlvr)
    names = sorted(name for name in base_files if _layer(name) in layers)
    if not names:
        raise ValueError(f"{base}: no weights of {', '.join(layers)}")
    lora = read_lora_config(rlvr)
    for name in names:
        base_MN = _read(base_files, name, base)
        if lora is None:
            rlvr_MN = _read(rlvr_files, name, rlvr)
        else:
            rlvr_MN = _with_lora(base_MN.float(), name, lora, rlvr_files)
        if base_MN.shape != rlvr_MN.shape:
            shapes = f"{tuple(base_MN.shape)} in base, {tuple(rlvr_MN.shape)} in rlvr"
            raise ValueError(f"{name}: {shapes}; the two are not one model")
        yield MatrixPair(name, base_MN, rlvr_MN)


def _layer(name: str) -> str | None:
    """The last part of the layer's name, of a parameter called `….LAYER.weight`."""
    path, _, leaf = name.rpartition(".")
    return path.rpartition(".")[2] if leaf == "weight" else None


def _tensor_files(directory: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            files.update(dict.fromkeys(file.keys(), path))
    if not files:
        raise ValueError(f"{directory}: holds no .safetensors weights")
    return files


def _read(files: dict[str, Path], name: str, directory: Path) -> Tensor:
    if name not in files:
        raise ValueError(f"{name}: in base, but not in {directory}")
    with safe_open(files[name], framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _with_lora(
    base_MN: Tensor, name: str, config: dict[str, Any], files: dict[str, Path]
) -> Tensor:
    """The weight with its update, or as it is where the adapter leaves the layer alone."""
    layer = name.removesuffix(".weight")
    keys = lora_keys(layer)
    if not any(key in files for key in keys):
        return base_MN
    A_RN, B_MR = (_read(files, key, next(iter(files.values())).parent).float() for key in keys)
    return base_MN + lora_scaling(config, layer, A_RN.shape[0]) * (B_MR @ A_RN)
