"""One stack of base weights computes both models: tokens stacked to 2N, rlvr's half first.

vLLM's own layers are kept. How a linear layer computes both halves is `delta_method.py`'s,
attention `twin_attention.py`'s.
Legend: N tokens, I and O inputs and outputs of a layer on this rank, R summed rank.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import LinearBase, QKVParallelLinear, RowParallelLinear

from rlvr_decode.engine.delta_method import DeltaMethod, PackedProduct, WidenedProduct
from rlvr_decode.engine.packing import frozen, pack_layers, packs
from rlvr_decode.engine.twin_attention import Stacking, twin_of
from rlvr_decode.lora import Factors

# The checkpoint's layers inside each of vLLM's fused ones, in the order of their outputs.
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}


class Down(nn.Module):
    """A [R, I] of a layer, as what vLLM's linear methods expect of a layer."""

    def __init__(self, weight_RI: Tensor) -> None:
        super().__init__()
        self.weight = frozen(weight_RI)


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
    pack_layers(model)
    return stacking


def _add_delta(layer: Any, parts: list[tuple[Tensor, Tensor] | None], stacking: Stacking) -> None:
    """Attach this rank's share of the factors to a layer; None where the adapter has none.

    A's of the layers that vLLM fuses lie below each other, B's on the diagonal.
    """
    weight_OI: Tensor = layer.weight
    method: type[DeltaMethod] = PackedProduct if packs(weight_OI) else WidenedProduct
    ranks = sum(len(part[1]) for part in parts if part is not None)
    width = -(-ranks // method.rank_multiple) * method.rank_multiple
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
    layer.register_parameter("delta_up", frozen(up_OR))
    layer.delta_down = Down(down_RI)
    layer.delta_rank = width
    layer.quant_method = method(layer.quant_method, stacking)


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
