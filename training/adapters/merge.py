"""Fold an adapter into full weights, knowing what the storage precision loses."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvr_decode.training.adapters.attach import AttachedAdapter
from rlvr_decode.training.adapters.layer import AnchoredLinear

WARN_ABOVE = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
    """Merged weights, and the share ‖ΔW seen − ΔW‖ / ‖ΔW‖ of the update that rounding takes.

    weights           by the base model's parameter names.
    lost              in the dtype asked for, over all matrices.
    lost_in_bfloat16  what a merge in bfloat16 would lose.
    """

    weights: dict[str, Tensor]
    lost: float
    lost_in_bfloat16: float


@torch.no_grad()
def merge(adapter: AttachedAdapter, *, dtype: torch.dtype = torch.float32) -> Merge:
    """W + scaling · (B A − B0 A0) for every adapted layer; the model itself is not touched.

    A typical RLVR update is a thousandth of W, which is below what bfloat16 resolves: a merge in
    bfloat16 loses most of it, and one taken back leaves a drifted base. Serve the exported
    adapter instead, or keep the merge in float32. Warns when more than 1 % is lost.
    """
    weights = {}
    update_square = lost_square = lost_bfloat16_square = 0.0
    for name, layer in adapter.layers.items():
        before = layer.base.weight.to(layer.anchor_A.dtype)
        update = merged_update(layer)
        merged = before + update
        weights[f"{name}.weight"] = merged.to(dtype)
        update_square += _square(update)
        lost_square += _square(merged.to(dtype).to(before.dtype) - before - update)
        lost_bfloat16_square += _square(merged.bfloat16().to(before.dtype) - before - update)
    scale = 1 / math.sqrt(update_square) if update_square else 0.0
    lost = math.sqrt(lost_square) * scale
    if lost > WARN_ABOVE:
        warnings.warn(
            f"merging in {dtype} loses {lost:.0%} of the update; merge in float32 or export the "
            "adapter",
            stacklevel=2,
        )
    return Merge(
        weights=weights, lost=lost, lost_in_bfloat16=math.sqrt(lost_bfloat16_square) * scale
    )


def merged_update(layer: AnchoredLinear) -> Tensor:
    """ΔW of one layer, out × in, in the precision of its factors."""
    left, right = layer.update_factors()
    return layer.scaling * (left @ right)


def _square(matrix: Tensor) -> float:
    return matrix.double().square().sum().item()
