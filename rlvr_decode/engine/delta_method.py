"""How a linear layer of an adapter pair's engine computes both models on stacked tokens.

The update B A is added to the weight when it is loaded, so that rlvr alone needs no A x. From
base's half it is taken away again, W x − B A x. In 16 bits W is rounded, alike for both models.
`PackedProduct` is our own kernel, on CPUs that have its instructions; `WidenedProduct` asks vLLM's
for [W | −B] applied to [x | A x], with zeros for A x in rlvr's half, on any device.
Legend: N tokens, I and O inputs and outputs of a layer on this rank, R summed rank.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from vllm.model_executor.layers.linear import LinearMethodBase

from rlvr_decode.engine.packing import frozen
from rlvr_decode.engine.twin_attention import Stacking
from rlvr_decode.kernels import delta_linear as kernel


class DeltaMethod(LinearMethodBase):
    """What both ways share: the layer has W, B as `delta_up` and A in `delta_down` when loaded."""

    rank_multiple: int  # R is filled up to it with zeros

    def __init__(self, method: LinearMethodBase, stacking: Stacking) -> None:
        self.method = method
        self.stacking = stacking

    def create_weights(self, *args: object, **kwargs: object) -> None:
        raise AssertionError("the wrapped method has created them")

    def process_weights_after_loading(self, layer: Any) -> None:
        """Make the weights of the product, and check both halves of it."""
        base_OI, up_OR, down_RI = (
            each.detach().float()
            for each in (layer.weight, layer.delta_up, layer.delta_down.weight)
        )
        rlvr_OI, dtype = base_OI + up_OR @ down_RI, layer.weight.dtype
        layer.weight = frozen(torch.cat([rlvr_OI, -up_OR], dim=1).to(dtype))
        del layer.delta_up
        self.pack(layer)

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

    @abstractmethod
    def pack(self, layer: Any) -> None:
        """Turn the layer's [W | −B] and A into what the product reads."""


class WidenedProduct(DeltaMethod):
    """One product of vLLM's own with R more inputs."""

    rank_multiple = 16  # matrix products like rows that start at multiples of 32 bytes

    def pack(self, layer: Any) -> None:
        for part in (layer, layer.delta_down):
            self.method.process_weights_after_loading(part)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.stacking.rlvr_alone:
            # Not `pad`, of which the compiler makes loops of masked loads.
            shift = x.new_zeros(x.shape[0], layer.delta_rank)
        else:
            shift = self.method.apply(layer.delta_down, x)
            # For rlvr's rows A x is cheaper to compute than to leave out.
            shift[: x.shape[0] // 2] = 0
        return self.method.apply(layer, torch.cat([x, shift], dim=1), bias)


class PackedProduct(DeltaMethod):
    """Our kernel for CPUs."""

    rank_multiple = 2

    def pack(self, layer: Any) -> None:
        layer.delta_outputs = len(layer.weight)
        for part in (layer, layer.delta_down):
            part.weight = frozen(kernel.pack(part.weight))

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        down = None if self.stacking.rlvr_alone else layer.delta_down.weight
        return kernel.delta_linear(x, layer.weight, down, bias, layer.delta_outputs)
