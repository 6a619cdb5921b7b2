"""One stack of base weights computes both models: tokens stacked to 2N, rlvr's half first.

vLLM's own layers are kept. The update B A is added to a linear layer's weight when it is loaded, so
that rlvr alone needs no A x. From base's half it is taken away again, as R more inputs: W x - B A x
is [W | -B] applied to [x | A x], one product for both halves, in which rlvr's half has zeros for
A x. In 16 bits W is rounded, alike for both models. Attention is `twin_attention.py`'s.
Legend: N tokens, I and O inputs and outputs of a layer on this rank, R summed rank.
"""

from __future__ import annotations

from typing import Any

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

from rlvr_decode.engine.twin_attention import Stacking, twin_of
from rlvr_decode.lora import Factors

# The checkpoint's layers inside each of vLLM's fused ones, in the order of their outputs.
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}
# Matrix products like rows that start at multiples of 32 bytes.
RANK_MULTIPLE = 16


class Down(nn.Module):
    """A [R, I] of a layer, as what vLLM's linear methods expect of a layer."""

    def __init__(self, weight_RI: Tensor) -> None:
        super().__init__()
        self.weight = _frozen(weight_RI)


class DeltaLinearMethod(LinearMethodBase):
    """How vLLM computes a linear layer, with B A x taken from the rows of base."""

    def __init__(self, method: LinearMethodBase, stacking: Stacking) -> None:
        self.method = method
        self.stacking = stacking

    def create_weights(self, *args: object, **kwargs: object) -> None:
        raise AssertionError("the wrapped method has created them")

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.stacking.rlvr_alone:
            # Not `pad`, of which the compiler makes loops of masked loads.
            shift = x.new_zeros(x.shape[0], layer.delta_rank)
        else:
            shift = self.method.apply(layer.delta_down, x)
            # For rlvr's rows A x is cheaper to compute than to leave out.
            shift[: x.shape[0] // 2] = 0
        return self.method.apply(layer, torch.cat([x, shift], dim=1), bias)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Make the weight [W + B A | -B], let the method pack it, and check both halves."""
        base_OI, up_OR, down_RI = (
            each.detach().float()
            for each in (layer.weight, layer.delta_up, layer.delta_down.weight)
        )
        rlvr_OI, dtype = base_OI + up_OR @ down_RI, layer.weight.dtype
        layer.weight = _frozen(torch.cat([rlvr_OI, -up_OR], dim=1).to(dtype))
        del layer.delta_up
        for part in (layer, layer.delta_down):
            self.method.process_weights_after_loading(part)

        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(4, base_OI.shape[1], generator=generator).to(base_OI.device, dtype)
        found = self.apply(layer, torch.cat([probe, probe])).float().chunk(2)
        for half, merged_OI in zip(found, (rlvr_OI, base_OI), strict=True):
            expected = F.linear(probe.float(), merged_OI)
            error = ((half - expected).norm() / expected.norm()).item()
            if not error < 8 * torch.finfo(dtype).eps:
                raise ValueError(
                    f"{layer.prefix}: base + delta is off the merged weight by {error:.2g}; "
                    "the engine's layout of this layer is not the one expected"
                )


def stack_layers(model: nn.Module, factors: Factors, vllm_config: VllmConfig) -> Stacking:
    """Turn vLLM's model in place into one that computes base and rlvr on stacked tokens.

    factors  by layer name, up [out, rank] and down [rank, in] of rlvr's update, scaling included.

    Returns the switch between both models and rlvr alone. Raises ValueError naming layers of the
    adapter that the model does not have.
    """
    stacking = Stacking()
    unused = set(factors)
    for name, module in list(model.named_modules()):
        if isinstance(module, Attention):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, twin_of(module, vllm_config, stacking))
        elif isinstance(module, LinearBase):
            parent, _, leaf = name.rpartition(".")
            inner = [f"{parent}.{part}" for part in FUSED.get(leaf, ())]
            if present := [part for part in inner if part in factors]:
                _add_delta(module, [factors.get(part) for part in inner], stacking)
                unused.difference_update(present)
    if unused:
        raise ValueError(f"the adapter changes layers that the base has not: {sorted(unused)}")
    return stacking


def _add_delta(layer: Any, parts: list[tuple[Tensor, Tensor] | None], stacking: Stacking) -> None:
    """Attach this rank's share of the factors to a layer; None where the adapter has none.

    A's of the layers that vLLM fuses lie below each other, B's on the diagonal.
    """
    weight_OI: Tensor = layer.weight
    ranks = sum(len(part[1]) for part in parts if part is not None)
    width = -(-ranks // RANK_MULTIPLE) * RANK_MULTIPLE
    up_OR = weight_OI.new_zeros(len(weight_OI), width)
    down_RI = weight_OI.new_zeros(width, weight_OI.shape[1])
    output = rank = 0
    for index, (part, size) in enumerate(zip(parts, _partition_sizes(layer), strict=True)):
        if part is not None:
            up, down = _shard(layer, index, size, *part)
            up_OR[output : output + size, rank : rank + len(down)] = up
            down_RI[rank : rank + len(down)] = down
            rank += len(down)
        output += size
    layer.register_parameter("delta_up", _frozen(up_OR))
    layer.delta_down = Down(down_RI)
    layer.delta_rank = width
    layer.quant_method = DeltaLinearMethod(layer.quant_method, stacking)


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


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)
