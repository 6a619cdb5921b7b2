"""Chosen tokens' log p under both models, both entropies and the KL on a GPU, in one pass.

A program for each row streams both models' logits once and keeps eight running numbers; nothing
of the logits' size is made. The arithmetic is float32, the meaning `reference.delta_logprobs`'s.

Shapes: as in `reference.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlvr_decode.kernels.online import LOWEST, advance
from rlvr_decode.kernels.reference import DeltaLogprobs

MAX_BLOCK = 4096
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
    _delta_logprobs_kernel[(rows,)](
        *result,
        rlvr_NV,
        base_NW,
        tokens_NK,
        *rlvr_NV.stride(),
        *base_NW.stride(),
        tokens_NK.shape[1],
        vocab,
        BLOCK=min(MAX_BLOCK, triton.next_power_of_2(vocab)),
        CHOSEN_BLOCK=CHOSEN_BLOCK,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return result


@triton.jit
def _delta_logprobs_kernel(
    chosen_rlvr_NK: tl.tensor,
    chosen_base_NK: tl.tensor,
    delta_NK: tl.tensor,
    rlvr_entropy_N: tl.tensor,
    base_entropy_N: tl.tensor,
    kl_N: tl.tensor,
    rlvr_NV: tl.tensor,
    base_NW: tl.tensor,
    tokens_NK: tl.tensor,
    rlvr_row: int,
    rlvr_column: int,
    base_row: int,
    base_column: int,
    chosen: int,
    vocab: int,
    BLOCK: tl.constexpr,
    CHOSEN_BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    rlvr_V = rlvr_NV + row * rlvr_row
    base_W = base_NW + row * base_row
    lanes = tl.arange(0, BLOCK).to(tl.int64)

    # With w = exp(x − peak): Σ w, Σ w·(x − peak), and for KL Σ w_r·((r − r_peak) − (b − b_peak)).
    # These terms are small where the models agree, and so is their rounding: such a KL is tiny.
    r_peak = tl.full((), LOWEST, tl.float32)
    b_peak = r_peak
    r_sum, r_moment, b_sum, b_moment = 0.0, 0.0, 0.0, 0.0
    gap, escapes = 0.0, 0
    for start in range(0, vocab, BLOCK):
        column = start + lanes
        common = column < vocab
        r = tl.load(rlvr_V + column * rlvr_column, mask=common, other=-INF).to(tl.float32)
        b = tl.load(base_W + column * base_column, mask=common, other=-INF).to(tl.float32)
        r_peak, r_moved, r_weight = advance(r_peak, r)
        b_peak, b_moved, b_weight = advance(b_peak, b)
        # 0 · log 0 is 0.
        r_below = tl.where(r == -INF, 0.0, r - r_peak)
        b_below = tl.where(b == -INF, 0.0, b - b_peak)
        r_shrink, b_shrink = tl.exp(r_moved), tl.exp(b_moved)

        gap = (gap + (r_moved - b_moved) * r_sum) * r_shrink
        gap += tl.sum(r_weight * (r_below - b_below), 0)
        r_moment = (r_moment + r_moved * r_sum) * r_shrink + tl.sum(r_weight * r_below, 0)
        b_moment = (b_moment + b_moved * b_sum) * b_shrink + tl.sum(b_weight * b_below, 0)
        r_sum = r_sum * r_shrink + tl.sum(r_weight, 0)
        b_sum = b_sum * b_shrink + tl.sum(b_weight, 0)
        escapes = tl.maximum(escapes, tl.max(((r != -INF) & (b == -INF)).to(tl.int32), 0))
    r_log_sum, b_log_sum = tl.log(r_sum), tl.log(b_sum)

    tl.store(rlvr_entropy_N + row, r_log_sum - r_moment / r_sum)
    tl.store(base_entropy_N + row, b_log_sum - b_moment / b_sum)
    # With a token that base rules out `gap` means nothing; NaN in a row stays NaN.
    infinite = INF + (r_log_sum + b_log_sum)
    kl = tl.where(escapes > 0, infinite, gap / r_sum - (r_log_sum - b_log_sum))
    tl.store(kl_N + row, kl)

    for start in range(0, chosen, CHOSEN_BLOCK):
        k = start + tl.arange(0, CHOSEN_BLOCK)
        at = row * chosen + k
        token = tl.load(tokens_NK + at, mask=k < chosen, other=-1).to(tl.int64)
        known = (token >= 0) & (token < vocab)
        r = tl.load(rlvr_V + token * rlvr_column, mask=known, other=NAN).to(tl.float32)
        b = tl.load(base_W + token * base_column, mask=known, other=NAN).to(tl.float32)
        r = (r - r_peak) - r_log_sum
        b = (b - b_peak) - b_log_sum
        delta = tl.where((r == -INF) & (b == -INF), 0.0, r - b)
        tl.store(chosen_rlvr_NK + at, r, mask=k < chosen)
        tl.store(chosen_base_NK + at, b, mask=k < chosen)
        tl.store(delta_NK + at, delta, mask=k < chosen)
