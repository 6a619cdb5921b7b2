"""Attention of stacked tokens: each half, rlvr's first, over the KV cache of its own model.

`TwinLayers` is two of vLLM's attention layers, which every backend computes. On a CPU the call of a
layer costs as much as what it computes, so there `DoubledHeads` is one layer with the heads of both
models; a decode step of 8 requests is 4 % faster (`benchmarks/results/decode.md`). Rlvr alone uses
half of its heads. Backends for GPUs plan a step for all heads of a layer, and could not.
Legend: N tokens, H heads and G heads of keys on this rank, D head size.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.platforms import current_platform

Layer = TypeVar("Layer", bound=Attention)


class Stacking:
    """Whether the layers compute both models on stacked tokens, or rlvr alone on plain ones.

    Compiled code keeps what held when it was traced, so each has a body of its own to compile.
    """

    rlvr_alone = False


def twin_of(attention: Attention, vllm_config: VllmConfig, stacking: Stacking) -> nn.Module:
    """What computes one model's attention for both, in the way this device does it best."""
    kind = DoubledHeads if current_platform.is_cpu() else TwinLayers
    return kind(attention, vllm_config, stacking)


class TwinLayers(nn.Module):
    """vLLM's layer for base, and another one for rlvr."""

    def __init__(self, base: Attention, vllm_config: VllmConfig, stacking: Stacking) -> None:
        super().__init__()
        self.base = base
        self.rlvr = _layer_like(base, vllm_config, f"{base.layer_name}_rlvr", Attention, 1)
        self.stacking = stacking

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.stacking.rlvr_alone:
            alone: Tensor = self.rlvr(query, key, value)
            return alone
        halves = zip(*(tensor.chunk(2) for tensor in (query, key, value)), strict=True)
        rlvr, base = (
            attention(*half) for attention, half in zip((self.rlvr, self.base), halves, strict=True)
        )
        return torch.cat([rlvr, base])


class DoubledHeads(nn.Module):
    """One layer of 2H heads in place of vLLM's, rlvr's H first."""

    def __init__(self, one: Attention, vllm_config: VllmConfig, stacking: Stacking) -> None:
        super().__init__()
        # vLLM finds a layer, and with it the cache, by name: this one's name finds `both` now.
        del vllm_config.compilation_config.static_forward_context[one.layer_name]
        self.one = one
        self.both = _layer_like(one, vllm_config, one.layer_name, HalvableCache, 2)
        self.both.stacking = stacking
        self.stacking = stacking

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.stacking.rlvr_alone:
            alone: Tensor = self.one(query, key, value)
            return alone
        # [2N, HD] to [N, 2HD] and back.
        beside = (torch.cat(tensor.chunk(2), dim=-1) for tensor in (query, key, value))
        return torch.cat(self.both(*beside).chunk(2, dim=-1))


class HalvableCache(Attention):
    """A layer whose cache [blocks, 2G, ..., 2D] is rlvr's half of it while rlvr runs alone."""

    stacking = Stacking()  # the engine's, once the layer is made

    @property
    def kv_cache(self) -> Tensor:
        return self._rlvr_half if self.stacking.rlvr_alone else self._whole

    @kv_cache.setter
    def kv_cache(self, whole: Tensor) -> None:
        self._whole = whole
        # Empty until vLLM has allocated it.
        self._rlvr_half = whole[:, : self.num_kv_heads // 2] if whole.numel() else whole


def _layer_like(
    attention: Attention, vllm_config: VllmConfig, name: str, kind: type[Layer], times: int
) -> Layer:
    """A layer of this name and kind with `times` as many heads."""
    return kind(
        times * attention.num_heads,
        attention.head_size,
        attention.impl.scale,
        num_kv_heads=times * attention.num_kv_heads,
        cache_config=vllm_config.cache_config,
        per_layer_sliding_window=attention.sliding_window,
        prefix=name,
        attn_type=attention.attn_type,
    )
