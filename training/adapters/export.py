"""Write an adapter as plain LoRA: the files stock PEFT and stock vLLM load."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rlvr_decode.lora import write_lora
from rlvr_decode.training.adapters.attach import AttachedAdapter


def export(
    adapter: AttachedAdapter,
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    base: str | None = None,
) -> Path:
    """Write the update as a LoRA to be added to the untouched base; returns the directory.

    It goes out in difference form, [B − B0, B0] · [A; A − A0], at twice the adapter's rank (at
    the same rank where B0 is zero). bfloat16 costs 0.2 % of it however small it is; the
    concatenation [B, −B0] · [A; A0] would cost nearly all of a typical RLVR update. vLLM needs
    --max-lora-rank at least the exported rank.

    base  path or hub id of the base model, recorded for whoever loads the adapter.
    """
    return write_lora(
        directory,
        update_factors(adapter),
        scaling=adapter.config.scaling,
        dtype=dtype,
        base=base,
        metadata={"base_checksum": adapter.base_checksum},
    )


@torch.no_grad()
def update_factors(adapter: AttachedAdapter) -> dict[str, tuple[Tensor, Tensor]]:
    """By layer name, left and right of its update, scaling · left @ right."""
    return {name: layer.update_factors() for name, layer in adapter.layers.items()}
