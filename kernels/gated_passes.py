"""The passes over a row that the gated rule's kernel is made of.

Every logit is turned into its depth, (peak − logit) / temperature: at least 0, with exp(−depth)
the weight of the token, and for such numbers the order is the order of their bits. A greedy row
has depth 0 at its first peak and +inf elsewhere.

In all of them x is the primary's logit and z the extrapolated one, both with the bias; what a pass
needs to know of the row travels in tuples: `source` (where the logits lie), `models` (what turns
them into x and z), `drawing` (what turns x and z into depths).
"""

import math

import triton
import triton.language as tl

from rlvr_decode.kernels.gated_reference import GATES
from rlvr_decode.kernels.online import LOWEST, advance

INF = tl.constexpr(float("inf"))
LOG_2 = tl.constexpr(math.log(2))
NOWHERE = tl.constexpr(1 << 40)
BITS_OF_INF = tl.constexpr(0x7F800000)
KL = tl.constexpr(GATES["kl"])
REVERSE_KL = tl.constexpr(GATES["reverse_kl"])
JSD = tl.constexpr(GATES["jsd"])
ENTROPY = tl.constexpr(GATES["entropy"])


@triton.jit
def normalise(source: tl.tuple, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr) -> tl.tuple:
    """Both models' peaks and sums, the primary's peak and where, and rlvr's among the permitted."""
    vocab, from_base = source[6], source[7]
    lanes = tl.arange(0, BLOCK).to(tl.int64)
    r_peak = tl.full((), LOWEST, tl.float32)
    b_peak, x_peak, permitted_peak = r_peak, r_peak, r_peak
    x_first = tl.full((), NOWHERE, tl.int64)
    r_sum, b_sum = 0.0, 0.0
    for start in range(0, vocab, BLOCK):
        r, b, bias, forbidden = load(source, start + lanes, HAS_BIAS)
        r_peak, r_moved, r_weight = advance(r_peak, r)
        b_peak, b_moved, b_weight = advance(b_peak, b)
        r_sum = r_sum * tl.exp(r_moved) + tl.sum(r_weight, 0)
        b_sum = b_sum * tl.exp(b_moved) + tl.sum(b_weight, 0)
        x = tl.where(forbidden, -INF, tl.where(from_base, b, r) + bias)
        x_peak, x_first = climb(x_peak, x_first, x, start)
        permitted_peak = tl.maximum(permitted_peak, tl.max(tl.where(forbidden, -INF, r), 0))
    return r_peak, r_sum, b_peak, b_sum, x_peak, x_first, permitted_peak


@triton.jit
def look(
    models: tl.tuple, gate: tl.tensor, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tuple:
    """The extrapolated logits' peak and where, and what the gate compares with its threshold."""
    vocab, from_base = models[0][6], models[0][7]
    lanes = tl.arange(0, BLOCK).to(tl.int64)
    z_peak = tl.full((), LOWEST, tl.float32)
    z_first = tl.full((), NOWHERE, tl.int64)
    statistic = 0.0
    for start in range(0, vocab, BLOCK):
        _, z, logp_r, logp_b, _ = score(models, start + lanes, HAS_BIAS)
        z_peak, z_first = climb(z_peak, z_first, z, start)
        if gate == KL:
            statistic += tl.sum(divergence(logp_r, logp_b), 0)
        elif gate == REVERSE_KL:
            statistic += tl.sum(divergence(logp_b, logp_r), 0)
        elif gate == JSD:
            middle = log_add(logp_r, logp_b) - LOG_2
            both = divergence(logp_r, middle) + divergence(logp_b, middle)
            statistic += 0.5 * tl.sum(both, 0)
        elif gate == ENTROPY:
            logp = tl.where(from_base, logp_b, logp_r)
            statistic -= tl.sum(tl.where(logp == -INF, 0.0, tl.exp(logp) * logp), 0)
    return z_peak, z_first, statistic


@triton.jit
def weigh(
    drawing: tl.tuple,
    x_last: tl.tensor,
    z_last: tl.tensor,
    threshold: tl.tensor,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tuple:
    """What is kept of either distribution, and what of the primary's has Δ ≤ threshold."""
    vocab = drawing[0][0][6]
    lanes = tl.arange(0, BLOCK).to(tl.int64)
    x_sum, z_sum, gated_sum = 0.0, 0.0, 0.0
    for start in range(0, vocab, BLOCK):
        x_depth, z_depth, delta, _ = depth(drawing, start + lanes, HAS_BIAS)
        x_weight = tl.where(x_depth > x_last, 0.0, tl.exp(-x_depth))
        x_sum += tl.sum(x_weight, 0)
        z_sum += tl.sum(tl.where(z_depth > z_last, 0.0, tl.exp(-z_depth)), 0)
        gated_sum += tl.sum(tl.where(delta <= threshold, x_weight, 0.0), 0)
    return x_sum, z_sum, gated_sum


@triton.jit
def cut(
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
            x_depth, z_depth, _, _ = depth(drawing, start + lanes, HAS_BIAS)
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
def load(source: tl.tuple, column: tl.tensor, HAS_BIAS: tl.constexpr) -> tl.tuple:
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
def score(models: tl.tuple, column: tl.tensor, HAS_BIAS: tl.constexpr) -> tl.tuple:
    """The primary's and the extrapolated logits, biased, and both models' log-softmax."""
    source, log_sums, strength, cutoff = models
    r, b, bias, forbidden = load(source, column, HAS_BIAS)
    r_peak, r_log_sum, b_peak, b_log_sum = log_sums
    # The peak first: close to it, and there the mass is, the difference is exact.
    logp_r = (r - r_peak) - r_log_sum
    logp_b = (b - b_peak) - b_log_sum
    # Δ of a token that base rules out: see `reference.extrapolate`.
    delta = tl.where(b == -INF, tl.where(strength < 0.0, INF, 0.0), logp_r - logp_b)
    gone = forbidden | (r == -INF) | (r < cutoff)
    x = tl.where(forbidden, -INF, tl.where(source[7], b, r) + bias)
    # At strength 0 rlvr's own logit: base's NaN shows in m.
    z = tl.where(gone, -INF, tl.where(strength == 0.0, r, r + strength * delta) + bias)
    return x, z, logp_r, logp_b, forbidden


@triton.jit
def depth(drawing: tl.tuple, column: tl.tensor, HAS_BIAS: tl.constexpr) -> tl.tuple:
    """How far below its peak a token lies, in the primary and extrapolated; and its Δ."""
    models, temperature, greedy, x_peak, z_peak, x_first, z_first = drawing
    x, z, logp_r, logp_b, forbidden = score(models, column, HAS_BIAS)
    x_depth = (x_peak - x) / temperature
    z_depth = (z_peak - z) / temperature
    if greedy:
        x_depth = tl.where(column == x_first, 0.0, INF)
        z_depth = tl.where(column == z_first, 0.0, INF)
    return x_depth, z_depth, logp_r - logp_b, forbidden


@triton.jit
def climb(peak: tl.tensor, first: tl.tensor, logits: tl.tensor, start: int) -> tl.tuple:
    """Take in a block: the new maximum, and the first column that has it."""
    top, lane = tl.max(logits, 0, return_indices=True)
    return tl.maximum(peak, top), tl.where(top > peak, (start + lane).to(tl.int64), first)


@triton.jit
def divergence(logp: tl.tensor, logq: tl.tensor) -> tl.tensor:
    """The terms of KL(p ‖ q)."""
    term = tl.where(logq == -INF, INF, tl.exp(logp) * (logp - logq))
    return tl.where(logp == -INF, 0.0, term)


@triton.jit
def log_add(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    high = tl.maximum(a, b)
    total = high + tl.log(tl.exp(a - high) + tl.exp(b - high))
    return tl.where((a == -INF) & (b == -INF), -INF, total)
