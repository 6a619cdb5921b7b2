"""Every way to run a kernel behind one face: on the CPU, in Triton's interpreter, on a GPU.

Triton decides at import whether it interprets, and another test may have imported it by then. So
interpreted kernels run in a process of their own, which shares the tensors it is sent.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from rlvr_decode import ops
from rlvr_decode.kernels import delta_logprobs, extrapolate, gated_extrapolate
from rlvr_decode.kernels.gated_reference import Gated, Rule
from rlvr_decode.kernels.reference import DeltaLogprobs


class Kernels:
    """The operations of `rlvr_decode.ops` on one device; takes and returns CPU tensors."""

    def __init__(self, device: str) -> None:
        self.device = device

    def extrapolate(self, rlvr, base, strength, plausibility, out_dtype=torch.float32) -> Tensor:
        rlvr, base = self.place(rlvr), self.place(base)
        strength, plausibility = self.place(strength), self.place(plausibility)
        return ops.extrapolate(rlvr, base, strength, plausibility, out_dtype=out_dtype).cpu()

    def extrapolate_(self, rlvr, base, strength, plausibility) -> Tensor:
        """Works on a copy of all the memory under `rlvr`; returns the same view of that copy."""
        placed = self.place(rlvr)
        settings = self.place(strength), self.place(plausibility)
        assert ops.extrapolate_(placed, self.place(base), *settings) is placed
        return whole(placed).cpu().as_strided(rlvr.shape, rlvr.stride(), rlvr.storage_offset())

    def delta_logprobs(self, rlvr, base, tokens) -> DeltaLogprobs:
        result = ops.delta_logprobs(self.place(rlvr), self.place(base), tokens.to(self.device))
        return DeltaLogprobs(*(field.cpu() for field in result))

    def gated_extrapolate(self, rlvr, base, rule, bias=None) -> Gated:
        rule = Rule(*(self.place(setting) for setting in rule))
        bias = None if bias is None else self.place(bias)
        result = ops.gated_extrapolate(self.place(rlvr), self.place(base), rule, bias)
        return Gated(*(field.cpu() for field in result))

    def place(self, tensor: Tensor) -> Tensor:
        """A copy on the device, with the strides and the memory around the view."""
        copy = whole(tensor).clone().to(self.device)
        return copy.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class InterpretedKernels(Kernels):
    """The Triton launchers themselves, in the process that interprets them."""

    def __init__(self, process: ProcessPoolExecutor) -> None:
        super().__init__("cpu")
        self._process = process

    def extrapolate(self, rlvr, base, strength, plausibility, out_dtype=torch.float32) -> Tensor:
        out = torch.full(rlvr.shape, float("nan"), dtype=out_dtype)
        rlvr, base = self.place(rlvr), self.place(base)
        arguments = out, rlvr, base, strength, plausibility
        self._process.submit(extrapolate.extrapolate_into, *arguments).result()
        return out

    def extrapolate_(self, rlvr, base, strength, plausibility) -> Tensor:
        placed = self.place(rlvr)
        arguments = placed, placed, self.place(base), strength, plausibility
        self._process.submit(extrapolate.extrapolate_into, *arguments).result()
        return placed

    def delta_logprobs(self, rlvr, base, tokens) -> DeltaLogprobs:
        tokens_NK = tokens if tokens.dim() == 2 else tokens[:, None]
        arguments = self.place(rlvr), self.place(base), tokens_NK
        result = self._process.submit(delta_logprobs.delta_logprobs, *arguments).result()
        chosen = (chosen.reshape(tokens.shape) for chosen in result[:3])
        return DeltaLogprobs(*chosen, *result[3:])

    def gated_extrapolate(self, rlvr, base, rule, bias=None) -> Gated:
        arguments = self.place(rlvr), self.place(base), rule, bias
        return self._process.submit(gated_extrapolate.gated_extrapolate, *arguments).result()


def whole(tensor: Tensor) -> Tensor:
    """All the memory under a view, as one flat tensor."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.as_strided((size,), (1,), 0)


@pytest.fixture(scope="session")
def interpreter():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_INTERPRET", "1")
        environment.setenv("PYTHONWARNINGS", "ignore::RuntimeWarning")  # NumPy's, about log 0
        process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        environment.setenv("OMP_NUM_THREADS", "1")
        process.submit(int).result()  # the process starts with its first task, in this environment
    with process:
        yield process


@pytest.fixture(params=["cpu", "interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request) -> Kernels:
    if request.param == "interpreter":
        return InterpretedKernels(request.getfixturevalue("interpreter"))
    return Kernels(request.param)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh memory holds NaN, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def assert_within_budget():
    """Bound an error by what the definition itself loses in the working dtype, against float64."""

    def check(result: Tensor, oracle: Tensor, working: Tensor) -> None:
        finite = oracle.isfinite()
        torch.testing.assert_close(
            result[~finite].double(), oracle[~finite], rtol=0, atol=0, equal_nan=True
        )
        if not finite.any():
            return
        reference_error = (working.double() - oracle)[finite].abs().max()
        # At least 1: every result comes from Σ exp(x − max), which is rounded at 1 or above.
        rounding = torch.finfo(result.dtype).eps * oracle[finite].abs().max().clamp(min=1)
        error = (result.double() - oracle)[finite].abs().max()
        assert error <= 2 * (reference_error + rounding)

    return check


@pytest.fixture(scope="session")
def any_logits():
    """Draws logits as an engine could hand them over: of any dtype, strides, size and masks."""

    def draw(data: st.DataObject, rows: int, columns: int) -> Tensor:
        dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
        scale = data.draw(st.sampled_from([1e-3, 1.0, 8.0, 50.0]))
        masked = data.draw(st.sampled_from([0.0, 0.3, 0.9]))
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
        values = torch.randn(rows, columns, generator=generator) * scale
        keep = torch.rand(rows, columns, generator=generator) >= masked
        keep[:, 0] = True
        values = values.masked_fill(~keep, float("-inf")).to(dtype)

        memory = torch.full((3 * rows + 2, 2 * columns + 5), float("nan"), dtype=dtype)
        layouts = {
            "whole": memory.flatten()[1 : 1 + rows * columns].view(rows, columns),
            "rows": memory[1 : 1 + 3 * rows : 3, 2 : 2 + columns],
            "columns": memory[:rows, 3 : 3 + 2 * columns : 2],
            "transposed": torch.full((columns, rows + 3), float("nan"), dtype=dtype).t()[2:-1],
        }
        return layouts[data.draw(st.sampled_from(sorted(layouts)))].copy_(values)

    return draw
