"""Fused extrapolation of one decode step on a GPU: a program for each row, two passes over it.

The first pass finds both log-sum-exps, the second writes the logits. Any dtype is read and written;
the arithmetic is float32. The meaning is `reference.extrapolate`'s.

Shapes: as in `reference.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlvr_decode.kernels.online import LOWEST, advance

MAX_BLOCK = 4096
INF = tl.constexpr(float("inf"))


def extrapolate_into(
    out_NV: Tensor, rlvr_NV: Tensor, base_NW: Tensor, strength_N: Tensor, plausibility_N: Tensor
) -> None:
    """Write `reference.extrapolate` to `out_NV`, which may be `rlvr_NV` itself.

    Logits may have any strides. `strength_N` and `plausibility_N` are contiguous float32.
    """
    rows, width = rlvr_NV.shape
    vocab = min(width, base_NW.shape[1])
    assert out_NV.shape == rlvr_NV.shape and len(base_NW) == rows
    assert len({t.device for t in (out_NV, rlvr_NV, base_NW, strength_N, plausibility_N)}) == 1
    for setting_N in (strength_N, plausibility_N):
        assert setting_N.shape == (rows,) and setting_N.dtype == torch.float32
        assert setting_N.is_contiguous()

    _extrapolate_kernel[(rows,)](
        out_NV,
        rlvr_NV,
        base_NW,
        strength_N,
        plausibility_N,
        *out_NV.stride(),
        *rlvr_NV.stride(),
        *base_NW.stride(),
        width,
        vocab,
        IN_PLACE=out_NV is rlvr_NV,
        BLOCK=min(MAX_BLOCK, triton.next_power_of_2(width)),
        num_warps=8,
        enable_fp_fusion=True,
    )


@triton.jit
def _extrapolate_kernel(
    out_NV: tl.tensor,
    rlvr_NV: tl.tensor,
    base_NW: tl.tensor,
    strength_N: tl.tensor,
    plausibility_N: tl.tensor,
    out_row: int,
    out_column: int,
    rlvr_row: int,
    rlvr_column: int,
    base_row: int,
    base_column: int,
    width: int,
    vocab: int,
    IN_PLACE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    out_V = out_NV + row * out_row
    rlvr_V = rlvr_NV + row * rlvr_row
    base_W = base_NW + row * base_row
    strength = tl.load(strength_N + row)
    lanes = tl.arange(0, BLOCK).to(tl.int64)

    if strength == 0.0:
        if not IN_PLACE:
            for start in range(0, width, BLOCK):
                column = start + lanes
                untouched = tl.load(rlvr_V + column * rlvr_column, mask=column < width)
                tl.store(out_V + column * out_column, untouched, mask=column < width)
        return

    r_peak = tl.full((), LOWEST, tl.float32)
    b_peak = r_peak
    r_sum, b_sum = 0.0, 0.0
    for start in range(0, vocab, BLOCK):
        column = start + lanes
        common = column < vocab
        r = tl.load(rlvr_V + column * rlvr_column, mask=common, other=-INF).to(tl.float32)
        b = tl.load(base_W + column * base_column, mask=common, other=-INF).to(tl.float32)
        r_peak, r_moved, r_weight = advance(r_peak, r)
        b_peak, b_moved, b_weight = advance(b_peak, b)
        r_sum = r_sum * tl.exp(r_moved) + tl.sum(r_weight, 0)
        b_sum = b_sum * tl.exp(b_moved) + tl.sum(b_weight, 0)
    r_log_sum, b_log_sum = tl.log(r_sum), tl.log(b_sum)

    beyond = strength > 0.0
    cutoff = tl.where(beyond, r_peak + tl.log(tl.load(plausibility_N + row)), -INF)
    # Δ of a token that base rules out: see the definition.
    ruled_out = tl.where(beyond, 0.0, INF)
    for start in range(0, width, BLOCK):
        column = start + lanes
        r = tl.load(rlvr_V + column * rlvr_column, mask=column < vocab, other=-INF).to(tl.float32)
        # "Not below" keeps NaN. Where nothing is kept, base is not even read again.
        keep = (column < vocab) & (r != -INF) & ~(r < cutoff)
        b = tl.load(base_W + column * base_column, mask=keep, other=0.0).to(tl.float32)
        # The peak first: close to it, and there the mass is, the difference is exact.
        delta = ((r - r_peak) - r_log_sum) - ((b - b_peak) - b_log_sum)
        delta = tl.where(b == -INF, ruled_out, delta)
        z = tl.where(keep, r + strength * delta, -INF)
        tl.store(out_V + column * out_column, z, mask=column < width)
