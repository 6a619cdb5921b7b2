"""One stack of base weights computes both models: tokens stacked to 2N, rlvr's half first.

vLLM's own layers are kept. Each linear layer reads its weight once for both halves and adds the
low-rank delta to the first; each attention layer becomes two, with a KV cache each.
Legend: N tokens, I and O inputs and outputs of a layer on this rank, R summed rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    QKVParallelLinear,
    RowParallelLinear,
)

from rlvr_decode.lora import Factors

# The checkpoint's layers inside each of vLLM's fused ones, in the order of their outputs.
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}


class TwinAttention(nn.Module):
    """Attention of both halves, each over the KV cache of its own model."""

    def __init__(self, base: Attention, rlvr: Attention) -> None:
        super().__init__()
        self.base = base
        self.rlvr = rlvr

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        halves = zip(*(tensor.chunk(2) for tensor in (query, key, value)), strict=True)
        rlvr, base = (
            attention(*half) for attention, half in zip((self.rlvr, self.base), halves, strict=True)
        )
        return torch.cat([rlvr, base])


class Slice(NamedTuple):
    """Where one checkpoint layer's delta acts inside a fused layer of vLLM's."""

    outputs: slice
    ranks: slice
    up: str  # the layer's parameter [O, R]


class DeltaLinearMethod(LinearMethodBase):
    """How vLLM computes a linear layer, plus the delta on the rows of the first half."""

    def __init__(self, method: LinearMethodBase, slices: list[Slice]) -> None:
        self.method = method
        self.slices = slices

    def create_weights(self, *args: object, **kwargs: object) -> None:
        raise AssertionError("the wrapped method has created them")

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out: Tensor = self.method.apply(layer, x, bias)
        half = x.shape[0] // 2
        down_NR = F.linear(x[:half], layer.delta_down)
        for outputs, ranks, up in self.slices:
            out[:half, outputs].addmm_(down_NR[:, ranks], getattr(layer, up).t())
        return out

    def process_weights_after_loading(self, layer: Any) -> None:
        """Let the method pack its weight, then check the delta against a merged one."""
        down_RI: Tensor = layer.delta_down
        merged_OI = layer.weight.detach().float().clone()
        for outputs, ranks, up in self.slices:
            merged_OI[outputs] += getattr(layer, up).float() @ down_RI[ranks].float()
        self.method.process_weights_after_loading(layer)
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(4, merged_OI.shape[1], generator=generator).to(down_RI)
        expected = F.linear(probe.float(), merged_OI)
        found = self.apply(layer, torch.cat([probe, probe]))[:4].float()
        error = ((found - expected).norm() / expected.norm()).item()
        if not error < 8 * torch.finfo(probe.dtype).eps:
            raise ValueError(
                f"{layer.prefix}: base + delta is off the merged weight by {error:.2g}; "
                "the engine's layout of this layer is not the one expected"
            )


def stack_layers(model: nn.Module, factors: Factors, vllm_config: VllmConfig) -> None:
    """Turn vLLM's model in place into one that computes base and rlvr on stacked tokens.

    factors  by layer name, up [out, rank] and down [rank, in] of rlvr's update, scaling included.

    Raises ValueError naming layers of the adapter that the model does not have.
    """
    unused = set(factors)
    for name, module in list(model.named_modules()):
        if isinstance(module, Attention):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _twin(module, vllm_config))
        elif isinstance(module, LinearBase):
            parent, _, leaf = name.rpartition(".")
            inner = [f"{parent}.{part}" for part in FUSED.get(leaf, ())]
            if present := [part for part in inner if part in factors]:
                parts = [factors.get(part) for part in inner]
                _add_delta(module, parts)
                unused.difference_update(present)
    if unused:
        raise ValueError(f"the adapter changes layers that the base has not: {sorted(unused)}")


def _twin(attention: Attention, vllm_config: VllmConfig) -> TwinAttention:
    rlvr = Attention(
        attention.num_heads,
        attention.head_size,
        attention.impl.scale,
        num_kv_heads=attention.num_kv_heads,
        cache_config=vllm_config.cache_config,
        per_layer_sliding_window=attention.sliding_window,
        prefix=f"{attention.layer_name}_rlvr",
        attn_type=attention.attn_type,
    )
    return TwinAttention(attention, rlvr)


def _add_delta(layer: Any, parts: list[tuple[Tensor, Tensor] | None]) -> None:
    """Attach this rank's share of the factors to a layer; None where the adapter has none."""
    weight: Tensor = layer.weight
    downs: list[Tensor] = []
    slices: list[Slice] = []
    start = rank = 0
    for index, (part, size) in enumerate(zip(parts, _partition_sizes(layer), strict=True)):
        if part is not None:
            up_OR, down_RI = _shard(layer, index, size, *part)
            name = f"delta_up_{index}"
            layer.register_parameter(name, _frozen(up_OR, weight))
            place, ranks = slice(start, start + size), slice(rank, rank + len(down_RI))
            slices.append(Slice(place, ranks, name))
            downs.append(down_RI)
            rank = ranks.stop
        start += size
    layer.register_parameter("delta_down", _frozen(torch.cat(downs), weight))
    layer.quant_method = DeltaLinearMethod(layer.quant_method, slices)


def _partition_sizes(layer: Any) -> list[int]:
    """Outputs on this rank of each checkpoint layer in a fused one."""
    if isinstance(layer, RowParallelLinear):
        return [layer.output_size]
    sizes: list[int] = layer.output_partition_sizes
    return sizes


def _shard(
    layer: Any, index: int, size: int, up_OR: Tensor, down_RI: Tensor
) -> tuple[Tensor, Tensor]:
    """This rank's part of up (outputs are sharded) or of down (inputs are)."""
    rank = get_tensor_model_parallel_rank()
    if isinstance(layer, RowParallelLinear):
        width = layer.input_size_per_partition
        return up_OR, down_RI[:, rank * width : (rank + 1) * width]
    if isinstance(layer, QKVParallelLinear) and index > 0:
        rank //= layer.num_kv_head_replicas
    return up_OR[rank * size : (rank + 1) * size], down_RI


def _frozen(tensor: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.to(like).contiguous(), requires_grad=False)
