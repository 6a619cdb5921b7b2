"""Write an adapter as plain LoRA: the files stock PEFT and stock vLLM load."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlvr_decode.training.adapters.attach import AttachedAdapter

EXPORT_DTYPES = (torch.bfloat16, torch.float32)


def export(
    adapter: AttachedAdapter,
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    base: str | None = None,
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors; returns the directory.

    The update goes out in difference form, [B − B0, B0] · [A; A − A0], as a LoRA of twice the
    rank (of the same rank where B0 is zero) to be added to the untouched base. bfloat16 costs
    0.2 % of it however small it is; the concatenation [B, −B0] · [A; A0] would cost nearly all
    of a typical RLVR update. vLLM needs --max-lora-rank at least the exported rank.

    base  path or hub id of the base model, recorded for whoever loads the adapter.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = lora_tensors(adapter, dtype=dtype)
    metadata = {"format": "pt", "base_checksum": adapter.base_checksum}
    save_file(tensors, directory / "adapter_model.safetensors", metadata=metadata)
    config = json.dumps(lora_config(adapter, base=base), indent=2)
    (directory / "adapter_config.json").write_text(config + "\n")
    return directory


@torch.no_grad()
def lora_tensors(adapter: AttachedAdapter, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """The exported tensors by PEFT's names, on the CPU; for a hot swap without files."""
    if dtype not in EXPORT_DTYPES:
        known = ", ".join(str(known) for known in EXPORT_DTYPES)
        raise ValueError(f"dtype={dtype}: adapters are exported in one of {known}")
    tensors = {}
    for name, layer in adapter.layers.items():
        left, right = layer.update_factors()
        for part, factor in (("lora_A", right), ("lora_B", left)):
            key = f"base_model.model.{name}.{part}.weight"
            # A copy: where B0 is zero the factor is the live parameter itself.
            tensors[key] = factor.detach().to("cpu", dtype, copy=True).contiguous()
    return tensors


def lora_config(adapter: AttachedAdapter, *, base: str | None = None) -> dict[str, object]:
    """PEFT's adapter_config.json; alpha grows with the exported rank so that scaling stays."""
    config = adapter.config
    _, right = next(iter(adapter.layers.values())).update_factors()
    rank = right.shape[0]
    alpha = config.scaling * rank
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "target_modules": sorted(config.targets),
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
