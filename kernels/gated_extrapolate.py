"""The gated rule on a GPU: a program for each row turns both models' logits into log q and m.

Four passes over a row, which stays in the cache: both log-sum-exps; the extrapolated peak and the
gate's statistic; what is kept of either distribution; log q. Rows that ask for top-k or top-p find
their cut-offs without sorting, by bisection over the bits of a number: 31 more passes for each. The
arithmetic is float32, the meaning `gated_reference.gated_extrapolate`'s.

Every logit is turned into its depth, (peak − logit) / temperature: at least 0, with exp(−depth)
the weight of the token, and for such numbers the order is the order of their bits. A greedy row
has depth 0 at its first peak and +inf elsewhere.

Shapes: as in `gated_reference.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlvr_decode.kernels.gated_reference import GATES, PRIMARIES, Gated, Rule
from rlvr_decode.kernels.online import LOWEST, advance

MAX_BLOCK = 4096
INF = tl.constexpr(float("inf"))
DELTA = tl.constexpr(GATES["delta"])
KL = tl.constexpr(GATES["kl"])
REVERSE_KL = tl.constexpr(GATES["reverse_kl"])
JSD = tl.constexpr(GATES["jsd"])
ENTROPY = tl.constexpr(GATES["entropy"])
RANDOM = tl.constexpr(GATES["random"])
BASE = tl.constexpr(PRIMARIES["base"])
BITS_OF_INF = tl.constexpr(0x7F800000)


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
        BLOCK=min(MAX_BLOCK, triton.next_power_of_2(width)),
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

    r_peak = tl.full((), LOWEST, tl.float32)
    b_peak, x_peak, permitted_peak = r_peak, r_peak, r_peak
    r_sum, b_sum = 0.0, 0.0
    for start in range(0, vocab, BLOCK):
        r, b, bias, forbidden = _load(source, start + lanes, HAS_BIAS)
        r_peak, r_moved, r_weight = advance(r_peak, r)
        b_peak, b_moved, b_weight = advance(b_peak, b)
        r_sum = r_sum * tl.exp(r_moved) + tl.sum(r_weight, 0)
        b_sum = b_sum * tl.exp(b_moved) + tl.sum(b_weight, 0)
        x = tl.where(forbidden, -INF, tl.where(from_base, b, r) + bias)
        x_peak = tl.maximum(x_peak, tl.max(x, 0))
        permitted_peak = tl.maximum(permitted_peak, tl.max(tl.where(forbidden, -INF, r), 0))
    log_sums = (r_peak, tl.log(r_sum), b_peak, tl.log(b_sum))
    plausibility = tl.log(tl.load(plausibility_N + row))
    cutoff = tl.where(strength > 0.0, permitted_peak + plausibility, -INF)
    models = (source, log_sums, strength, cutoff)

    z_peak = tl.full((), LOWEST, tl.float32)
    statistic = 0.0
    for start in range(0, vocab, BLOCK):
        _, z, logp_r, logp_b, _ = _score(models, start + lanes, HAS_BIAS)
        z_peak = tl.maximum(z_peak, tl.max(z, 0))
        if gate == KL:
            statistic += tl.sum(_divergence(logp_r, logp_b), 0)
        elif gate == REVERSE_KL:
            statistic += tl.sum(_divergence(logp_b, logp_r), 0)
        elif gate == JSD:
            middle = _log_add(logp_r, logp_b) - 0.6931471805599453
            both = _divergence(logp_r, middle) + _divergence(logp_b, middle)
            statistic += 0.5 * tl.sum(both, 0)
        elif gate == ENTROPY:
            logp = tl.where(from_base, logp_b, logp_r)
            statistic -= tl.sum(tl.where(logp == -INF, 0.0, tl.exp(logp) * logp), 0)

    nowhere = tl.full((), 1 << 40, tl.int64)
    x_first, z_first = nowhere, nowhere
    if greedy:
        for start in range(0, vocab, BLOCK):
            column = start + lanes
            x, z, _, _, _ = _score(models, column, HAS_BIAS)
            x_first = tl.minimum(x_first, tl.min(tl.where(x == x_peak, column, nowhere), 0))
            z_first = tl.minimum(z_first, tl.min(tl.where(z == z_peak, column, nowhere), 0))
    temperature = tl.where(greedy, 1.0, tl.load(temperature_N + row))
    drawing = (models, temperature, greedy, x_peak, z_peak, x_first, z_first)

    # The deepest that is kept, of the primary's distribution and of the extrapolated one.
    x_last = -tl.log(tl.load(min_p_N + row))
    z_last = x_last
    if (top_k > 0) & ~greedy:
        budget = top_k.to(tl.float32)
        x_last, z_last = _cut(drawing, x_last, z_last, budget, budget, True, HAS_BIAS, BLOCK)
    if (top_p < 1.0) & ~greedy:
        x_kept, z_kept = 0.0, 0.0
        for start in range(0, vocab, BLOCK):
            x_depth, z_depth, _, _ = _depth(drawing, start + lanes, HAS_BIAS)
            x_kept += tl.sum(tl.where(x_depth <= x_last, tl.exp(-x_depth), 0.0), 0)
            z_kept += tl.sum(tl.where(z_depth <= z_last, tl.exp(-z_depth), 0.0), 0)
        x_kept, z_kept = x_kept * top_p, z_kept * top_p
        x_last, z_last = _cut(drawing, x_last, z_last, x_kept, z_kept, False, HAS_BIAS, BLOCK)

    x_sum, z_sum, gated_sum = 0.0, 0.0, 0.0
    for start in range(0, vocab, BLOCK):
        x_depth, z_depth, delta, _ = _depth(drawing, start + lanes, HAS_BIAS)
        x_weight = tl.where(x_depth > x_last, 0.0, tl.exp(-x_depth))
        x_sum += tl.sum(x_weight, 0)
        z_sum += tl.sum(tl.where(z_depth > z_last, 0.0, tl.exp(-z_depth)), 0)
        gated_sum += tl.sum(tl.where(delta <= threshold, x_weight, 0.0), 0)
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
        x_depth, z_depth, delta, forbidden = _depth(drawing, column, HAS_BIAS)
        log_keep = tl.where(gate == DELTA, tl.where(delta <= threshold, -INF, 0.0), log_rest)
        kept = tl.where(x_depth > x_last, -INF, -x_depth - x_log_sum) + log_keep
        redrawn = tl.where(z_depth > z_last, -INF, -z_depth - z_log_sum)
        redrawn = tl.where(rate == 0.0, -INF, redrawn + log_rate)
        logq = _log_add(kept, redrawn) + 0.0 * rate
        logq = tl.where(forbidden, -INF, logq)
        tl.store(logq_NV + row * width + column, logq, mask=column < width)


@triton.jit
def _load(source: tl.tuple, column: tl.tensor, HAS_BIAS: tl.constexpr) -> tl.tuple:
    """Both models' logits, the bias, and where the primary or the bias forbids the token."""
    rlvr_V, rlvr_column, base_W, base_column, bias_V, bias_column, vocab, from_base = source
    common = column < vocab
    r = tl.load(rlvr_V + column * rlvr_column, mask=common, other=-INF).to(tl.float32)
    b = tl.load(base_W + column * base_column, mask=common, other=-INF).to(tl.float32)
    bias = tl.zeros_like(r)
    if HAS_BIAS:
        bias = tl.load(bias_V + column * bias_column, mask=common, other=-INF).to(tl.float32)
    return r, b, bias, (tl.where(from_base, b, r) == -INF) | (bias == -INF)


@triton.jit
def _score(models: tl.tuple, column: tl.tensor, HAS_BIAS: tl.constexpr) -> tl.tuple:
    """The primary's and the extrapolated logits, biased, and both models' log-softmax."""
    source, log_sums, strength, cutoff = models
    r, b, bias, forbidden = _load(source, column, HAS_BIAS)
    r_peak, r_log_sum, b_peak, b_log_sum = log_sums
    # The peak first: close to it, and there the mass is, the difference is exact.
    logp_r = (r - r_peak) - r_log_sum
    logp_b = (b - b_peak) - b_log_sum
    # Δ of a token that base rules out: see `reference.extrapolate`.
    delta = tl.where(b == -INF, tl.where(strength < 0.0, INF, 0.0), logp_r - logp_b)
    cut = forbidden | (r == -INF) | (r < cutoff)
    x = tl.where(forbidden, -INF, tl.where(source[7], b, r) + bias)
    # At strength 0 rlvr's own logit: base's NaN shows in m.
    z = tl.where(cut, -INF, tl.where(strength == 0.0, r, r + strength * delta) + bias)
    return x, z, logp_r, logp_b, forbidden


@triton.jit
def _depth(drawing: tl.tuple, column: tl.tensor, HAS_BIAS: tl.constexpr) -> tl.tuple:
    """How far below its peak a token lies, in the primary and extrapolated; and its Δ."""
    models, temperature, greedy, x_peak, z_peak, x_first, z_first = drawing
    x, z, logp_r, logp_b, forbidden = _score(models, column, HAS_BIAS)
    x_depth = (x_peak - x) / temperature
    z_depth = (z_peak - z) / temperature
    if greedy:
        x_depth = tl.where(column == x_first, 0.0, INF)
        z_depth = tl.where(column == z_first, 0.0, INF)
    return x_depth, z_depth, logp_r - logp_b, forbidden


@triton.jit
def _cut(
    drawing: tl.tuple,
    x_last: tl.tensor,
    z_last: tl.tensor,
    x_budget: tl.tensor,
    z_budget: tl.tensor,
    COUNT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tuple:
    """The depth at which the tokens above first use up a budget: of their count or their weight.

    Of all depths whose tokens above stay below the budget, the deepest, unless the row is cut
    before; it is the depth of a token, or +inf.
    """
    vocab = drawing[0][0][6]
    lanes = tl.arange(0, BLOCK).to(tl.int64)
    # A depth of 0 has nothing above it; beyond +inf there is no depth.
    x_low = tl.full((), 0, tl.int32)
    z_low = x_low
    x_high = tl.full((), BITS_OF_INF + 1, tl.int32)
    z_high = x_high
    for _halving in range(31):
        x_middle = x_low + (x_high - x_low) // 2
        z_middle = z_low + (z_high - z_low) // 2
        x_above, z_above = 0.0, 0.0
        for start in range(0, vocab, BLOCK):
            x_depth, z_depth, _, _ = _depth(drawing, start + lanes, HAS_BIAS)
            x_in = x_depth.to(tl.int32, bitcast=True) < x_middle
            z_in = z_depth.to(tl.int32, bitcast=True) < z_middle
            x_above += tl.sum(tl.where(x_in, 1.0 if COUNT else tl.exp(-x_depth), 0.0), 0)
            z_above += tl.sum(tl.where(z_in, 1.0 if COUNT else tl.exp(-z_depth), 0.0), 0)
        x_fits, z_fits = x_above < x_budget, z_above < z_budget
        x_low, x_high = tl.where(x_fits, x_middle, x_low), tl.where(x_fits, x_high, x_middle)
        z_low, z_high = tl.where(z_fits, z_middle, z_low), tl.where(z_fits, z_high, z_middle)
    x_low = x_low.to(tl.float32, bitcast=True)
    z_low = z_low.to(tl.float32, bitcast=True)
    return tl.minimum(x_last, x_low), tl.minimum(z_last, z_low)


@triton.jit
def _divergence(logp: tl.tensor, logq: tl.tensor) -> tl.tensor:
    """The terms of KL(p ‖ q)."""
    term = tl.where(logq == -INF, INF, tl.exp(logp) * (logp - logq))
    return tl.where(logp == -INF, 0.0, term)


@triton.jit
def _log_add(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    high = tl.maximum(a, b)
    total = high + tl.log(tl.exp(a - high) + tl.exp(b - high))
    return tl.where((a == -INF) & (b == -INF), -INF, total)
