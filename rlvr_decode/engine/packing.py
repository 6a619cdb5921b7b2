"""vLLM's linear layers and LM heads by our kernel, on CPUs that have its instructions.

Decoding reads every weight for a few rows. The kernel reads them faster than vLLM's product does
there (`benchmarks/layers.py`), so each model of a pair is computed by it where it can be.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.platforms import current_platform

from rlvr_decode.kernels import delta_linear as kernel
from rlvr_decode.places import cache_directory


def packs(weight_OI: Tensor) -> bool:
    """Whether the kernel can compute with a weight in this process; compiles it if need be."""
    return (
        current_platform.is_cpu()
        and kernel.takes(weight_OI, torch.cpu.get_capabilities())
        and _kernel_loads()
    )


@functools.cache
def _kernel_loads() -> bool:
    try:
        kernel.load(cache_directory("kernels"))
    except (RuntimeError, OSError) as error:  # it does not compile, or there is no home to keep it
        warnings.warn(f"a pair is slower without its kernel for CPUs: {error}", stacklevel=2)
        return False
    return True


def tell_compile_cache(vllm_config: VllmConfig) -> None:
    """Compiled code is kept by its config, which does not know what this machine can do."""
    dtype = cast(torch.dtype, vllm_config.model_config.dtype)
    vllm_config.model_config.hf_config.rlvr_packed = packs(torch.empty(2, 2, dtype=dtype))


def pack_layers(model: nn.Module) -> None:
    """Let the kernel compute a model's linear layers and its head, where it can; before loading."""
    head = getattr(model, "lm_head", None)
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if module is head and type(method) is UnquantizedEmbeddingMethod:
            packed: Any = PackedHead()
        # vLLM keeps the weights of layers with this mark, because others read them.
        elif type(method) is UnquantizedLinearMethod and not hasattr(
            module, "_cpu_skip_gemm_dispatch"
        ):
            packed = PackedLinear()
        else:
            continue
        if packs(module.get_parameter("weight")):
            module.quant_method = packed


class PackedLinear(UnquantizedLinearMethod):
    """A linear layer of one model, whose weight is kept packed only."""

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.packed_outputs = len(layer.weight)
        layer.weight = frozen(kernel.pack(layer.weight))

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        y = kernel.delta_linear(rows, layer.weight, None, bias, layer.packed_outputs)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], -1)


class PackedHead(UnquantizedEmbeddingMethod):
    """An LM head. The weight itself is kept too: a tied one embeds tokens."""

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.head_packed = kernel.pack(layer.weight.detach())

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return kernel.delta_linear(x, layer.head_packed, None, bias, len(layer.weight))


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)
