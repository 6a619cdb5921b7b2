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
    )
    return result


@triton.jit
def _delta_logprobs_kernel(
    chosen_rlvr_NK: Tensor,
    chosen_base_NK: Tensor,
    delta_NK: Tensor,
    rlvr_entropy_N: Tensor,
    base_entropy_N: Tensor,
    kl_N: Tensor,
    rlvr_NV: Tensor,
    base_NW: Tensor,
    tokens_NK: Tensor,
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

    # With w = exp(x − peak): Σ w, Σ w·(x − peak), and for KL Σ w_r·(r − b).
    r_peak = tl.full((), LOWEST, tl.float32)
    b_peak = r_peak
    r_sum, r_moment, b_sum, b_moment = 0.0, 0.0, 0.0, 0.0
    gap, escapes = 0.0, 0
    for start in range(0, vocab, BLOCK):
        column = start + lanes
        common = column < vocab
        r = tl.load(rlvr_V + column * rlvr_column, mask=common, other=-INF).to(tl.float32)
        b = tl.load(base_W + column * base_column, mask=common, other=-INF).to(tl.float32)
        r_peak, r_sum, r_moment, r_shrink, r_weight = _gather(r_peak, r_sum, r_moment, r)
        b_peak, b_sum, b_moment, _, _ = _gather(b_peak, b_sum, b_moment, b)
        both = (r != -INF) & (b != -INF)
        gap = gap * r_shrink + tl.sum(tl.where(both, r_weight * (r - b), 0.0), 0)
        escapes = tl.maximum(escapes, tl.max(((r != -INF) & (b == -INF)).to(tl.int32), 0))
    r_lse = r_peak + tl.log(r_sum)
    b_lse = b_peak + tl.log(b_sum)

    tl.store(rlvr_entropy_N + row, tl.log(r_sum) - r_moment / r_sum)
    tl.store(base_entropy_N + row, tl.log(b_sum) - b_moment / b_sum)
    # The peaks first: their difference is exact where the models agree, and KL may be tiny.
    lse_gap = (r_peak - b_peak) + (tl.log(r_sum) - tl.log(b_sum))
    tl.store(kl_N + row, gap / r_sum - lse_gap + tl.where(escapes > 0, INF, 0.0))

    for start in range(0, chosen, CHOSEN_BLOCK):
        k = start + tl.arange(0, CHOSEN_BLOCK)
        at = row * chosen + k
        token = tl.load(tokens_NK + at, mask=k < chosen, other=-1).to(tl.int64)
        known = (token >= 0) & (token < vocab)
        r = tl.load(rlvr_V + token * rlvr_column, mask=known, other=NAN).to(tl.float32) - r_lse
        b = tl.load(base_W + token * base_column, mask=known, other=NAN).to(tl.float32) - b_lse
        delta = tl.where((r == -INF) & (b == -INF), 0.0, r - b)
        tl.store(chosen_rlvr_NK + at, r, mask=k < chosen)
        tl.store(chosen_base_NK + at, b, mask=k < chosen)
        tl.store(delta_NK + at, delta, mask=k < chosen)


@triton.jit
def _gather(
    peak: tl.tensor, total: tl.tensor, moment: tl.tensor, logits: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Take in a block of logits: Σ w and Σ w·(x − peak) follow the maximum as it moves."""
    new_peak, shrink, weight = advance(peak, logits)
    terms = tl.where(logits != -INF, weight * (logits - new_peak), 0.0)
    moment = (moment + (peak - new_peak) * total) * shrink + tl.sum(terms, 0)
    return new_peak, total * shrink + tl.sum(weight, 0), moment, shrink, weight
