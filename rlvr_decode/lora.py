"""Plain LoRA on disk, as stock PEFT and stock vLLM load it.

M, N  rows and columns of a weight      R  rank
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float32)
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_NOT_PLAIN = ("use_rslora", "use_dora", "fan_in_fan_out", "modules_to_save")

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""By layer name, left_MR and right_RN of an update scaling · left @ right."""


def write_lora(
    directory: str | Path,
    factors: Factors,
    *,
    scaling: float,
    dtype: torch.dtype = torch.bfloat16,
    base: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors; returns the directory.

    dtype     bfloat16 or float32, of the factors.
    base      path or hub id of the base model, recorded for whoever loads the adapter.
    metadata  more to record, in the header of the weights.

    Layers may differ in rank. vLLM needs --max-lora-rank at least the largest.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = lora_tensors(factors, dtype=dtype)
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt", **(metadata or {})})
    _order_metadata(directory / WEIGHTS_FILE)
    ranks = {layer: right_RN.shape[0] for layer, (_, right_RN) in factors.items()}
    config = json.dumps(lora_config(ranks, scaling=scaling, base=base), indent=2)
    (directory / CONFIG_FILE).write_text(config + "\n")
    return directory


def _order_metadata(file: Path) -> None:
    """Metadata comes in an order of chance; the same adapter is to be the same file."""
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, f"{file}: the header has grown from {size} to {len(text)} bytes"
        stream.seek(8)
        stream.write(text.ljust(size))


def lora_tensors(factors: Factors, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of the file by PEFT's names: copies, on the CPU."""
    if dtype not in DTYPES:
        known = " or ".join(str(known) for known in DTYPES)
        raise ValueError(f"dtype={dtype}: LoRA is written in {known}")
    tensors = {}
    for layer, (left_MR, right_RN) in factors.items():
        for key, factor in zip(lora_keys(layer), (right_RN, left_MR), strict=True):
            tensors[key] = factor.detach().to("cpu", dtype, copy=True).contiguous()
    return tensors


def lora_keys(layer: str) -> tuple[str, str]:
    """PEFT's names of a layer's A and B."""
    return f"base_model.model.{layer}.lora_A.weight", f"base_model.model.{layer}.lora_B.weight"


def lora_config(
    ranks: Mapping[str, int], *, scaling: float, base: str | None = None
) -> dict[str, Any]:
    """PEFT's adapter_config.json for layers of these ranks; alpha is scaling times the rank."""
    if not ranks:
        raise ValueError("no layers: there is no update to write")
    usual = Counter(ranks.values()).most_common(1)[0][0]
    unusual = {layer: rank for layer, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": usual,
        "lora_alpha": _alpha(scaling, usual),
        "rank_pattern": unusual,
        "alpha_pattern": {layer: _alpha(scaling, rank) for layer, rank in unusual.items()},
        "target_modules": sorted({layer.rpartition(".")[2] for layer in ranks}),
        # True is the one value every loader accepts: nothing is to be computed from the base.
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def read_lora_config(directory: Path) -> dict[str, Any] | None:
    """The config of a plain LoRA directory; None for a directory of full weights.

    Raises ValueError for what is more than products of two factors.
    """
    path = directory / CONFIG_FILE
    if not path.exists():
        return None
    config: dict[str, Any] = json.loads(path.read_text())
    if beyond := [key for key in _NOT_PLAIN if config.get(key)]:
        raise ValueError(f"{path}: {', '.join(beyond)}: only plain LoRA is read; merge it first")
    return config


def read_factors(directory: str | Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Every layer's update as two factors in float32, the scaling folded into the left one.

    The inverse of `write_lora` with a scaling of 1. Raises ValueError for a directory that is no
    plain LoRA, or in which a layer has one factor only.
    """
    directory = Path(directory)
    config = read_lora_config(directory)
    if config is None:
        raise ValueError(f"{directory}: no {CONFIG_FILE}; it holds no adapter")
    tensors = load_file(directory / WEIGHTS_FILE)
    layers = {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in tensors}
    factors = {}
    for layer in sorted(layers):
        A_key, B_key = lora_keys(layer)
        if {A_key, B_key} - tensors.keys():
            raise ValueError(f"{directory}: {layer} has not both of {A_key} and {B_key}")
        right_RN, left_MR = tensors.pop(A_key).float(), tensors.pop(B_key).float()
        factors[layer] = (lora_scaling(config, layer, len(right_RN)) * left_MR, right_RN)
    if tensors:
        raise ValueError(f"{directory}: not plain LoRA, it also holds {sorted(tensors)}")
    return factors


def lora_scaling(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """alpha / rank of one layer, its alpha by PEFT's rule: the first pattern that ends its name."""
    alpha: float = config["lora_alpha"]
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = own
            break
    return alpha / rank


def _alpha(scaling: float, rank: int) -> float:
    alpha = scaling * rank
    return int(alpha) if float(alpha).is_integer() else alpha
