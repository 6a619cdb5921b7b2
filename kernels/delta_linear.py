"""A linear layer of both models of an adapter pair, one operation on a CPU.

`delta_linear.cpp` says how. It needs AVX-512 with bfloat16 products, and is for CPUs that have no
matrix unit (AMX), whose products of bfloat16 are faster still.
Legend: N rows, I inputs, O outputs, R summed rank.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from rlvr_decode.kernels import native

SOURCE = Path(__file__).with_suffix(".cpp")
PANEL = 32  # outputs
UNIT = 4  # bytes
NEEDED = ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_bf16", "fma3")


def takes(weight_OI: Tensor, capabilities: Mapping[str, object]) -> bool:
    """Whether a CPU has the instructions for a weight of this dtype and width, and nothing better.

    capabilities  as `torch.cpu.get_capabilities` tells them
    """
    if weight_OI.dtype not in (torch.bfloat16, torch.float32):
        return False
    matrix_unit = weight_OI.dtype == torch.bfloat16 and capabilities.get("amx_bf16")
    whole = weight_OI.shape[1] % _elements(weight_OI) == 0
    return whole and not matrix_unit and all(map(capabilities.get, NEEDED))


def load(cache: Path) -> None:
    """Make the operation known, compiled into `cache` at first; raises as `native.load` does."""
    if not hasattr(torch.ops.rlvr_decode, "delta_linear"):
        native.load(SOURCE, cache)
        torch.library.register_fake("rlvr_decode::delta_linear")(_fake)


def pack(weight_OI: Tensor) -> Tensor:
    """A weight as the operation reads it, [panels, units, 32 outputs × elements of a unit].

    A unit is two bfloat16 or one float32. Outputs that a last panel lacks are zeros. Raises
    ValueError for an odd number of bfloat16 inputs.
    """
    outputs, inputs = weight_OI.shape
    elements = _elements(weight_OI)
    if inputs % elements:
        raise ValueError(f"{inputs} inputs of {weight_OI.dtype} are not a multiple of {elements}")
    padded = F.pad(weight_OI, (0, 0, 0, -outputs % PANEL))
    by_unit = padded.view(-1, PANEL, inputs // elements, elements).transpose(1, 2)
    return by_unit.reshape(-1, inputs // elements, PANEL * elements).contiguous()


def delta_linear(
    x_NI: Tensor, weight: Tensor, down: Tensor | None, bias_O: Tensor | None, outputs: int
) -> Tensor:
    """W x + bias of every row, less B (A x) for the second half of them, base's.

    weight  `pack` of [W | −B] [O, I + R], or of W alone.
    down    `pack` of A [R, I]; without it every row is W x + bias, whatever follows W in `weight`.

    Returns [N, O] in the dtype of all of them. A x is rounded to it.
    """
    y_NO: Tensor = torch.ops.rlvr_decode.delta_linear(x_NI, weight, down, bias_O, outputs)
    return y_NO


def _elements(tensor: Tensor) -> int:
    """Of a unit."""
    return UNIT // tensor.element_size()


def _fake(
    x_NI: Tensor, weight: Tensor, down: Tensor | None, bias_O: Tensor | None, outputs: int
) -> Tensor:
    return x_NI.new_empty(x_NI.shape[0], outputs)
