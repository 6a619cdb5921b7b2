"""How a linear layer of an adapter pair's engine computes both models on stacked tokens.

The update B A is added to the weight when it is loaded, so that rlvr alone needs no A x. From
base's half it is taken away again, W x − B A x. In 16 bits W is rounded, alike for both models.
`PackedProduct` is our own kernel, on CPUs that have its instructions; `WidenedProduct` asks vLLM's
for [W | −B] applied to [x | A x], with zeros for A x in rlvr's half, on any device.
Legend: N tokens, I and O inputs and outputs of a layer on this rank, R summed rank.
"""

from __future__ import annotations

import functools
import logging
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.platforms import current_platform

from rlvr_decode.engine.twin_attention import Stacking
from rlvr_decode.kernels import delta_linear as kernel
from rlvr_decode.kernels.native import BuildError
from rlvr_decode.places import cache_directory

logger = logging.getLogger(__name__)


def packs(weight_OI: Tensor) -> bool:
    """Whether `PackedProduct` can compute with a weight in this process."""
    return (
        current_platform.is_cpu()
        and kernel.takes(weight_OI, torch.cpu.get_capabilities())
        and _kernel_loads()
    )


@functools.cache
def _kernel_loads() -> bool:
    try:
        kernel.load(cache_directory("kernels"))
    except (BuildError, OSError) as error:
        logger.warning("an adapter pair is slower without its kernel for CPUs: %s", error)
        return False
    return True


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
        plain = self.stacking.rlvr_alone or not layer.delta_rank
        down = None if plain else layer.delta_down.weight
        return kernel.delta_linear(x, layer.weight, down, bias, layer.delta_outputs)


class PackedHead(UnquantizedEmbeddingMethod):
    """Our kernel for the LM head, which both models share; its rows are chosen before it."""

    def process_weights_after_loading(self, layer: Any) -> None:
        # The weight itself is kept: a tied one embeds tokens too.
        layer.head_packed = kernel.pack(layer.weight.detach())

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return kernel.delta_linear(x, layer.head_packed, None, bias, len(layer.weight))


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)
