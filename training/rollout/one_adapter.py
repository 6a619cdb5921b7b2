"""vLLM's LoRA on a CPU, for an engine whose every request wears the one adapter that it holds.

vLLM gathers a copy of the factors for each token, so that each may wear another adapter. On a CPU
that is nine tenths of a step of a small model; two dense products do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform


class OneAdapter(PunicaWrapperCPU):
    """Adds scale · x Aᵀ Bᵀ for every token, with the factors of the only slot."""

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """In place on y, each of whose slices has factors of its own."""
        slices = torch.split(y, list(output_slices), dim=-1)
        for part, a, b in zip(slices, lora_a_stacked, lora_b_stacked, strict=True):
            part.addmm_(x @ a[0, 0].T, b[0, 0].T, alpha=scale)


@contextmanager
def one_adapter() -> Iterator[None]:
    """Inside, an engine that starts on a CPU adds LoRA this way; on a GPU nothing changes."""
    if not current_platform.is_cpu():
        yield
        return
    name = f"{OneAdapter.__module__}.{OneAdapter.__qualname__}"
    # An attribute of the instance hides the class's until it is deleted.
    current_platform.get_punica_wrapper = lambda: name  # type: ignore[method-assign]
    try:
        yield
    finally:
        del current_platform.get_punica_wrapper
