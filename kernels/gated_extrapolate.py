"""The gated rule on a GPU: a program for each row turns both models' logits into log q and m.

Four passes over a row, which stays in the cache: both log-sum-exps; the extrapolated peak and the
gate's statistic; what is kept of either distribution; log q. Rows that ask for top-k or top-p find
their cut-offs without sorting, by bisection over the bits of a number: 31 more passes for each. The
arithmetic is float32, the meaning `gated_reference.gated_extrapolate`'s.

Shapes: as in `gated_reference.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlvr_decode.kernels.gated_passes import cut, depth, log_add, look, normalise, weigh
from rlvr_decode.kernels.gated_reference import GATES, PRIMARIES, Gated, Rule
from rlvr_decode.kernels.online import parts_of

INF = tl.constexpr(float("inf"))
DELTA = tl.constexpr(GATES["delta"])
KL = tl.constexpr(GATES["kl"])
ENTROPY = tl.constexpr(GATES["entropy"])
RANDOM = tl.constexpr(GATES["random"])
BASE = tl.constexpr(PRIMARIES["base"])


def gated_extrapolate(
    rlvr_NV: Tensor, base_NW: Tensor, rule: Rule, bias_NV: Tensor | None = None
) -> Gated:
    """`gated_reference.gated_extrapolate` in float32. Logits and bias may have any strides."""
    rows, width = rlvr_NV.shape
    assert len(base_NW) == rows and (bias_NV is None or bias_NV.shape == rlvr_NV.shape)
    assert len({t.device for t in (rlvr_NV, base_NW, *rule)}) == 1
    for name, setting_N in rule._asdict().items():
        integer = name in ("gate", "primary", "top_k")
        assert setting_N.dtype == (torch.int32 if integer else torch.float32)
        assert setting_N.shape == (rows,) and setting_N.is_contiguous()

    logq_NV = torch.empty(rlvr_NV.shape, dtype=torch.float32, device=rlvr_NV.device)
    rate_N = torch.empty(rows, dtype=torch.float32, device=rlvr_NV.device)
    bias = rlvr_NV if bias_NV is None else bias_NV
    _gated_extrapolate_kernel[(rows,)](
        logq_NV,
        rate_N,
        rlvr_NV,
        base_NW,
        bias,
        *rule,
        *rlvr_NV.stride(),
        *base_NW.stride(),
        *bias.stride(),
        width,
        min(width, base_NW.shape[1]),
        HAS_BIAS=bias_NV is not None,
        BLOCK=parts_of(width)[0],
        num_warps=8,
        enable_fp_fusion=True,
    )
    return Gated(logq_NV, rate_N)


@triton.jit
def _gated_extrapolate_kernel(
    logq_NV: tl.tensor,
    rate_N: tl.tensor,
    rlvr_NV: tl.tensor,
    base_NW: tl.tensor,
    bias_NV: tl.tensor,
    strength_N: tl.tensor,
    plausibility_N: tl.tensor,
    gate_N: tl.tensor,
    threshold_N: tl.tensor,
    primary_N: tl.tensor,
    temperature_N: tl.tensor,
    top_k_N: tl.tensor,
    top_p_N: tl.tensor,
    min_p_N: tl.tensor,
    rlvr_row: int,
    rlvr_column: int,
    base_row: int,
    base_column: int,
    bias_row: int,
    bias_column: int,
    width: int,
    vocab: int,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    gate = tl.load(gate_N + row)
    threshold = tl.load(threshold_N + row)
    top_k = tl.load(top_k_N + row)
    top_p = tl.load(top_p_N + row)
    greedy = tl.load(temperature_N + row) == 0.0
    lanes = tl.arange(0, BLOCK).to(tl.int64)
    strength = tl.load(strength_N + row)
    from_base = tl.load(primary_N + row) == BASE
    source = (
        rlvr_NV + row * rlvr_row,
        rlvr_column,
        base_NW + row * base_row,
        base_column,
        bias_NV + row * bias_row,
        bias_column,
        vocab,
        from_base,
    )

    r_peak, r_sum, b_peak, b_sum, x_peak, x_first, permitted_peak = normalise(
        source, HAS_BIAS, BLOCK
    )
    plausibility = tl.log(tl.load(plausibility_N + row))
    cutoff = tl.where(strength > 0.0, permitted_peak + plausibility, -INF)
    log_sums = (r_peak, tl.log(r_sum), b_peak, tl.log(b_sum))
    models = (source, log_sums, strength, cutoff)

    z_peak, z_first, statistic = look(models, gate, HAS_BIAS, BLOCK)
    temperature = tl.where(greedy, 1.0, tl.load(temperature_N + row))
    drawing = (models, temperature, greedy, x_peak, z_peak, x_first, z_first)

    # The deepest that is kept, of the primary's distribution and of the extrapolated one.
    x_last = -tl.log(tl.load(min_p_N + row))
    z_last = x_last
    if (top_k > 0) & ~greedy:
        budget = top_k.to(tl.float32)
        x_last, z_last = cut(drawing, x_last, z_last, budget, budget, True, HAS_BIAS, BLOCK)
    if (top_p < 1.0) & ~greedy:
        x_sum, z_sum, _ = weigh(drawing, x_last, z_last, threshold, HAS_BIAS, BLOCK)
        x_sum, z_sum = top_p * x_sum, top_p * z_sum
        x_last, z_last = cut(drawing, x_last, z_last, x_sum, z_sum, False, HAS_BIAS, BLOCK)
    x_sum, z_sum, gated_sum = weigh(drawing, x_last, z_last, threshold, HAS_BIAS, BLOCK)
    x_log_sum, z_log_sum = tl.log(x_sum), tl.log(z_sum)

    rate = 1.0
    if gate == DELTA:
        rate = gated_sum / x_sum
    elif gate == RANDOM:
        rate = threshold
    elif (gate >= KL) & (gate <= ENTROPY):
        rate = tl.where(statistic >= threshold, 1.0, 0.0)
    # Adds 0, or NaN where a model has no distribution.
    rate += 0.0 * (tl.log(r_sum) + tl.log(b_sum))
    tl.store(rate_N + row, rate)

    # NaN where there is nothing for a second draw; at a rate of 0 that does not matter.
    log_rate = tl.log(rate) + 0.0 * z_log_sum
    log_rest = tl.log(1.0 - rate)
    for start in range(0, width, BLOCK):
        column = start + lanes
        x_depth, z_depth, delta, forbidden = depth(drawing, column, HAS_BIAS)
        log_keep = tl.where(gate == DELTA, tl.where(delta <= threshold, -INF, 0.0), log_rest)
        kept = tl.where(x_depth > x_last, -INF, -x_depth - x_log_sum) + log_keep
        redrawn = tl.where(z_depth > z_last, -INF, -z_depth - z_log_sum)
        redrawn = tl.where(rate == 0.0, -INF, redrawn + log_rate)
        logq = log_add(kept, redrawn) + 0.0 * rate
        logq = tl.where(forbidden, -INF, logq)
        tl.store(logq_NV + row * width + column, logq, mask=column < width)
