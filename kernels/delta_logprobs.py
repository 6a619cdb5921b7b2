"""Chosen tokens' log p under both models, both entropies and the KL on a GPU, in one pass.

A program for each part of a row reads both models' logits once and keeps eight numbers, which a
program for each row joins; nothing of the logits' size is made. The arithmetic is float32, the
meaning `reference.delta_logprobs`'s.

Shapes: as in `reference.py`, and P parts of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlvr_decode.kernels.online import LOWEST, advance, join, parts_of
from rlvr_decode.kernels.reference import DeltaLogprobs

CHOSEN_BLOCK = 16
INF = tl.constexpr(float("inf"))
NAN = tl.constexpr(float("nan"))


def delta_logprobs(rlvr_NV: Tensor, base_NW: Tensor, tokens_NK: Tensor) -> DeltaLogprobs:
    """`reference.delta_logprobs` in float32. Logits may have any strides."""
    rows = len(rlvr_NV)
    vocab = min(rlvr_NV.shape[1], base_NW.shape[1])
    assert len(base_NW) == rows and len(tokens_NK) == rows
    assert tokens_NK.dim() == 2 and not tokens_NK.is_floating_point()
    assert rlvr_NV.device == base_NW.device == tokens_NK.device

    tokens_NK = tokens_NK.contiguous()
    chosen_3NK = rlvr_NV.new_empty(3, *tokens_NK.shape, dtype=torch.float32)
    of_row_3N = rlvr_NV.new_empty(3, rows, dtype=torch.float32)
    result = DeltaLogprobs(*chosen_3NK, *of_row_3N)
    block, parts = parts_of(vocab)
    sums_8NP = rlvr_NV.new_empty(8, rows, parts, dtype=torch.float32)
    _sum_kernel[(rows * parts,)](
        *sums_8NP,
        rlvr_NV,
        base_NW,
        *rlvr_NV.stride(),
        *base_NW.stride(),
        vocab,
        parts,
        BLOCK=block,
        num_warps=8,
        enable_fp_fusion=True,
    )
    _join_kernel[(rows,)](
        *result,
        *sums_8NP,
        rlvr_NV,
        base_NW,
        tokens_NK,
        *rlvr_NV.stride(),
        *base_NW.stride(),
        tokens_NK.shape[1],
        vocab,
        parts,
        PARTS=triton.next_power_of_2(parts),
        CHOSEN_BLOCK=CHOSEN_BLOCK,
        num_warps=1,
        enable_fp_fusion=True,
    )
    return result


@triton.jit
def _sum_kernel(
    r_peak_NP: tl.tensor,
    r_sum_NP: tl.tensor,
    r_moment_NP: tl.tensor,
    b_peak_NP: tl.tensor,
    b_sum_NP: tl.tensor,
    b_moment_NP: tl.tensor,
    gap_NP: tl.tensor,
    escapes_NP: tl.tensor,
    rlvr_NV: tl.tensor,
    base_NW: tl.tensor,
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
    column = (part % parts) * BLOCK + tl.arange(0, BLOCK)
    common = column < vocab
    r = tl.load(rlvr_NV + row * rlvr_row + column * rlvr_column, mask=common, other=-INF)
    b = tl.load(base_NW + row * base_row + column * base_column, mask=common, other=-INF)
    r, b = r.to(tl.float32), b.to(tl.float32)
    r_peak, _, r_weight = advance(tl.full((), LOWEST, tl.float32), r)
    b_peak, _, b_weight = advance(tl.full((), LOWEST, tl.float32), b)
    # 0 · log 0 is 0.
    r_below = tl.where(r == -INF, 0.0, r - r_peak)
    b_below = tl.where(b == -INF, 0.0, b - b_peak)

    # With w = exp(x − peak): Σ w, Σ w·(x − peak), and for KL Σ w_r·((r − r_peak) − (b − b_peak)).
    # These terms are small where the models agree, and so is their rounding: such a KL is tiny.
    tl.store(r_peak_NP + part, r_peak)
    tl.store(r_sum_NP + part, tl.sum(r_weight, 0))
    tl.store(r_moment_NP + part, tl.sum(r_weight * r_below, 0))
    tl.store(b_peak_NP + part, b_peak)
    tl.store(b_sum_NP + part, tl.sum(b_weight, 0))
    tl.store(b_moment_NP + part, tl.sum(b_weight * b_below, 0))
    tl.store(gap_NP + part, tl.sum(r_weight * (r_below - b_below), 0))
    tl.store(escapes_NP + part, tl.max(((r != -INF) & (b == -INF)).to(tl.float32), 0))


@triton.jit
def _join_kernel(
    chosen_rlvr_NK: tl.tensor,
    chosen_base_NK: tl.tensor,
    delta_NK: tl.tensor,
    rlvr_entropy_N: tl.tensor,
    base_entropy_N: tl.tensor,
    kl_N: tl.tensor,
    r_peak_NP: tl.tensor,
    r_sum_NP: tl.tensor,
    r_moment_NP: tl.tensor,
    b_peak_NP: tl.tensor,
    b_sum_NP: tl.tensor,
    b_moment_NP: tl.tensor,
    gap_NP: tl.tensor,
    escapes_NP: tl.tensor,
    rlvr_NV: tl.tensor,
    base_NW: tl.tensor,
    tokens_NK: tl.tensor,
    rlvr_row: int,
    rlvr_column: int,
    base_row: int,
    base_column: int,
    chosen: int,
    vocab: int,
    parts: int,
    PARTS: tl.constexpr,
    CHOSEN_BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    rlvr_V = rlvr_NV + row * rlvr_row
    base_W = base_NW + row * base_row
    lane = tl.arange(0, PARTS)
    at, known = row * parts + lane, lane < parts
    r_peak, r_moved, r_shrink = join(tl.load(r_peak_NP + at, mask=known, other=LOWEST))
    b_peak, b_moved, b_shrink = join(tl.load(b_peak_NP + at, mask=known, other=LOWEST))
    r_sums = tl.load(r_sum_NP + at, mask=known, other=0.0)
    b_sums = tl.load(b_sum_NP + at, mask=known, other=0.0)
    r_moments = tl.load(r_moment_NP + at, mask=known, other=0.0) + r_moved * r_sums
    b_moments = tl.load(b_moment_NP + at, mask=known, other=0.0) + b_moved * b_sums
    gaps = tl.load(gap_NP + at, mask=known, other=0.0) + (r_moved - b_moved) * r_sums
    escapes = tl.max(tl.load(escapes_NP + at, mask=known, other=0.0), 0)
    r_sum, b_sum = tl.sum(r_sums * r_shrink, 0), tl.sum(b_sums * b_shrink, 0)
    r_log_sum, b_log_sum = tl.log(r_sum), tl.log(b_sum)

    tl.store(rlvr_entropy_N + row, r_log_sum - tl.sum(r_moments * r_shrink, 0) / r_sum)
    tl.store(base_entropy_N + row, b_log_sum - tl.sum(b_moments * b_shrink, 0) / b_sum)
    # With a token that base rules out the gap means nothing; NaN in a row stays NaN.
    infinite = INF + (r_log_sum + b_log_sum)
    gap = tl.sum(gaps * r_shrink, 0)
    kl = tl.where(escapes > 0, infinite, gap / r_sum - (r_log_sum - b_log_sum))
    tl.store(kl_N + row, kl)

    for start in range(0, chosen, CHOSEN_BLOCK):
        k = start + tl.arange(0, CHOSEN_BLOCK)
        place = row * chosen + k
        token = tl.load(tokens_NK + place, mask=k < chosen, other=-1).to(tl.int64)
        valid = (token >= 0) & (token < vocab)
        r = tl.load(rlvr_V + token * rlvr_column, mask=valid, other=NAN).to(tl.float32)
        b = tl.load(base_W + token * base_column, mask=valid, other=NAN).to(tl.float32)
        r = (r - r_peak) - r_log_sum
        b = (b - b_peak) - b_log_sum
        delta = tl.where((r == -INF) & (b == -INF), 0.0, r - b)
        tl.store(chosen_rlvr_NK + place, r, mask=k < chosen)
        tl.store(chosen_base_NK + place, b, mask=k < chosen)
        tl.store(delta_NK + place, delta, mask=k < chosen)
