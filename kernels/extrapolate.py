"""Fused extrapolation of one decode step on a GPU: two kernels, a program for each part of a row.

The first finds the parts' log-sum-exps, the second joins them and writes the logits. Any dtype is
read and written; the arithmetic is float32. The meaning is `reference.extrapolate`'s.

Shapes: as in `reference.py`, and P parts of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlvr_decode.kernels.online import LOWEST, advance, join, parts_of

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

    block, parts = parts_of(width)
    sums_4NP = rlvr_NV.new_empty(4, rows, parts, dtype=torch.float32)
    _sum_kernel[(rows * parts,)](
        *sums_4NP,
        rlvr_NV,
        base_NW,
        strength_N,
        *rlvr_NV.stride(),
        *base_NW.stride(),
        vocab,
        parts,
        BLOCK=block,
        num_warps=8,
        enable_fp_fusion=True,
    )
    _write_kernel[(rows * parts,)](
        out_NV,
        *sums_4NP,
        rlvr_NV,
        base_NW,
        strength_N,
        plausibility_N,
        *out_NV.stride(),
        *rlvr_NV.stride(),
        *base_NW.stride(),
        width,
        vocab,
        parts,
        IN_PLACE=out_NV is rlvr_NV,
        BLOCK=block,
        PARTS=triton.next_power_of_2(parts),
        num_warps=8,
        enable_fp_fusion=True,
    )


@triton.jit
def _sum_kernel(
    r_peak_NP: tl.tensor,
    r_sum_NP: tl.tensor,
    b_peak_NP: tl.tensor,
    b_sum_NP: tl.tensor,
    rlvr_NV: tl.tensor,
    base_NW: tl.tensor,
    strength_N: tl.tensor,
    rlvr_row: int,
    rlvr_column: int,
    base_row: int,
    base_column: int,
    vocab: int,
    parts: int,
    BLOCK: tl.constexpr,
) -> None:
    part = tl.program_id(0).to(tl.int64)
    row = part // parts
    if tl.load(strength_N + row) == 0.0:
        return
    column = (part % parts) * BLOCK + tl.arange(0, BLOCK)
    common = column < vocab
    r = tl.load(rlvr_NV + row * rlvr_row + column * rlvr_column, mask=common, other=-INF)
    b = tl.load(base_NW + row * base_row + column * base_column, mask=common, other=-INF)
    r_peak, _, r_weight = advance(tl.full((), LOWEST, tl.float32), r.to(tl.float32))
    b_peak, _, b_weight = advance(tl.full((), LOWEST, tl.float32), b.to(tl.float32))
    tl.store(r_peak_NP + part, r_peak)
    tl.store(r_sum_NP + part, tl.sum(r_weight, 0))
    tl.store(b_peak_NP + part, b_peak)
    tl.store(b_sum_NP + part, tl.sum(b_weight, 0))


@triton.jit
def _write_kernel(
    out_NV: tl.tensor,
    r_peak_NP: tl.tensor,
    r_sum_NP: tl.tensor,
    b_peak_NP: tl.tensor,
    b_sum_NP: tl.tensor,
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
    parts: int,
    IN_PLACE: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    part = tl.program_id(0).to(tl.int64)
    row = part // parts
    column = (part % parts) * BLOCK + tl.arange(0, BLOCK)
    out_V = out_NV + row * out_row + column * out_column
    rlvr_V = rlvr_NV + row * rlvr_row + column * rlvr_column
    strength = tl.load(strength_N + row)
    if strength == 0.0:
        if not IN_PLACE:
            tl.store(out_V, tl.load(rlvr_V, mask=column < width), mask=column < width)
        return

    lane = tl.arange(0, PARTS)
    at, known = row * parts + lane, lane < parts
    r_peak, _, r_shrink = join(tl.load(r_peak_NP + at, mask=known, other=LOWEST))
    b_peak, _, b_shrink = join(tl.load(b_peak_NP + at, mask=known, other=LOWEST))
    r_log_sum = tl.log(tl.sum(tl.load(r_sum_NP + at, mask=known, other=0.0) * r_shrink, 0))
    b_log_sum = tl.log(tl.sum(tl.load(b_sum_NP + at, mask=known, other=0.0) * b_shrink, 0))

    beyond = strength > 0.0
    cutoff = tl.where(beyond, r_peak + tl.log(tl.load(plausibility_N + row)), -INF)
    # Δ of a token that base rules out: see the definition.
    ruled_out = tl.where(beyond, 0.0, INF)
    r = tl.load(rlvr_V, mask=column < vocab, other=-INF).to(tl.float32)
    # "Not below" keeps NaN. Where nothing is kept, base is not even read again.
    keep = (column < vocab) & (r != -INF) & ~(r < cutoff)
    base_W = base_NW + row * base_row + column * base_column
    b = tl.load(base_W, mask=keep, other=0.0).to(tl.float32)
    # The peak first: close to it, and there the mass is, the difference is exact.
    delta = ((r - r_peak) - r_log_sum) - ((b - b_peak) - b_log_sum)
    delta = tl.where(b == -INF, ruled_out, delta)
    z = tl.where(keep, r + strength * delta, -INF)
    tl.store(out_V, z, mask=column < width)
