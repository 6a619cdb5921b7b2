"""The definition of the gated rule, in plain PyTorch: where to extrapolate, and how to draw.

As in `reference.py`: slow, clear, in the dtype of the logits, so that float64 makes an oracle.

The papers' loop draws a token from the primary model and, where a gate says so, throws it away and
draws again from the extrapolated distribution (arXiv 2603.22117, §4; strength 0 is the selective
replacement of §3). What that loop emits in one step has a closed form, which is computed here.

Shapes: N rows of logits, V and W columns (rlvr, base).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlvr_decode.kernels.reference import INF, divergence, entropy, extrapolate

GATES = {
    "none": 0,
    "all": 0,  # what the papers call the absence of a gate
    "delta": 1,
    "kl": 2,
    "reverse_kl": 3,
    "jsd": 4,
    "entropy": 5,
    "random": 6,
}
PRIMARIES = {"rlvr": 0, "base": 1}


class Rule(NamedTuple):
    """How each row is to be drawn: for every setting a tensor of shape [N]."""

    strength: Tensor
    """Of the extrapolation; 0 replaces by plain rlvr."""
    plausibility: Tensor
    """Of the extrapolation; see `reference.extrapolate`."""
    gate: Tensor
    """int32: a code of `GATES`."""
    threshold: Tensor
    """What the gate compares with, in nats; for `random`, the probability."""
    primary: Tensor
    """int32: a code of `PRIMARIES`, the model that is drawn from first."""
    temperature: Tensor
    """0 is greedy."""
    top_k: Tensor
    """int32; 0 or less keeps all."""
    top_p: Tensor
    """In (0, 1]; 1 keeps all."""
    min_p: Tensor
    """In [0, 1]; 0 keeps all."""


class Gated(NamedTuple):
    """What one step of the papers' loop emits."""

    logprobs: Tensor
    """log q [N, V]; −inf where q is 0."""
    rate: Tensor
    """m [N]: the probability that the primary's token is thrown away."""


def gated_extrapolate(
    rlvr_NV: Tensor, base_NW: Tensor, rule: Rule, bias_NV: Tensor | None = None
) -> Gated:
    """The distribution of a token drawn from the primary and redrawn where the gate says so.

        q(v) = p(v) · keep(v) + m · e(v)

    p is the primary's distribution and e the extrapolated one (`reference.extrapolate`), both as
    `processed` for drawing; m is the probability of a second draw. Gates look at the models' own
    distributions, at temperature 1, before any bias or truncation:

    none, all    keep = 0, m = 1: every position is extrapolated.
    delta        keep(v) = 1[Δ(v) > threshold], m = Σ p(v) · 1[Δ(v) ≤ threshold]: the papers' rule,
                 with Δ = log p_rlvr − log p_base of the token that was drawn.
    kl           m = 1[KL(p_rlvr ‖ p_base) ≥ threshold], keep = 1 − m.
    reverse_kl   the same with KL(p_base ‖ p_rlvr).
    jsd          the same with the Jensen–Shannon divergence: the mean of both models' KL from their
                 average, ½ (p_rlvr + p_base).
    entropy      the same with the primary's entropy.
    random       m = threshold, keep = 1 − m.

    greedy       At temperature 0, p and e are certain of their most likely token.
    bias         Added to the primary's logits and to the extrapolated ones: a `logit_bias` as it
                 is, −inf for what a grammar forbids.
    −inf         A token with −inf in the bias or in the primary's own logits is forbidden: q is 0
                 whatever the other model says. Plausibility is measured among permitted tokens.
    padding      Columns that one model lacks have q = 0.
    NaN, +inf    A model without a distribution (NaN, +inf, or nothing but −inf) makes the row's
                 permitted tokens and m NaN. So does an unsuitable probability of `random`, or a
                 second draw with nothing to draw from.
    """
    vocab = min(rlvr_NV.shape[1], base_NW.shape[1])
    r, b = rlvr_NV[:, :vocab], base_NW[:, :vocab]
    bias = torch.zeros_like(r) if bias_NV is None else bias_NV[:, :vocab].to(r.dtype)
    primary = torch.where((rule.primary == PRIMARIES["base"])[:, None], b.to(r.dtype), r)
    forbidden = (primary == -INF) | (bias == -INF)

    # By both models' own Δ: only plausibility knows what is forbidden.
    z = extrapolate(r, b, rule.strength, torch.zeros_like(rule.plausibility))
    cutoff = r.masked_fill(forbidden, -INF).amax(-1) + rule.plausibility.to(r.dtype).log()
    implausible = (rule.strength > 0)[:, None] & (r < cutoff[:, None])
    z = z.masked_fill(forbidden | implausible, -INF)
    logp = processed(primary + bias, rule)
    loge = processed(z + bias, rule)

    logp_r, logp_b = r.log_softmax(-1), b.log_softmax(-1)
    by_token = rule.gate == GATES["delta"]
    gated_NV = logp_r - logp_b <= rule.threshold.to(r.dtype)[:, None]
    m = torch.where(
        by_token,
        (logp.exp() * gated_NV).sum(-1),
        _rate(logp_r, logp_b, primary.log_softmax(-1), rule),
    )
    # 0, or NaN where a model has no distribution.
    m = m + 0.0 * (r.logsumexp(-1) + b.logsumexp(-1))
    keep = torch.where(by_token[:, None], ~gated_NV, (1 - m)[:, None])

    # Where m is 0 it does not matter whether there is an e.
    redrawn = torch.where(m == 0, -INF, m.log())[:, None] + loge.masked_fill((m == 0)[:, None], 0.0)
    logq = torch.logaddexp(logp + keep.log(), redrawn).masked_fill(forbidden, -INF)
    return Gated(pad(logq, (0, rlvr_NV.shape[1] - vocab), value=-INF), m)


def processed(logits_NV: Tensor, rule: Rule) -> Tensor:
    """log p after temperature, min-p, top-k and top-p: in this order, vLLM's.

    min_p   keeps v with p(v) ≥ min_p · max p.
    top_k   keeps v if fewer than top_k tokens are likelier.
    top_p   keeps v if the likelier tokens, of those that are left, have less than top_p together.

    Tokens of equal logits are kept or cut together, so that no order of the vocabulary shows. vLLM
    does this for min-p, and in PyTorch for top-k; its other ways break such ties by index.
    """
    temperature = rule.temperature.to(logits_NV.dtype)[:, None]
    greedy = temperature == 0
    below = logits_NV - logits_NV.amax(-1, keepdim=True)
    kept = _truncate(below / temperature.masked_fill(greedy, 1.0), rule)

    first = logits_NV.argmax(-1, keepdim=True)
    nothing = below.amax(-1, keepdim=True)  # 0, or NaN where there is nothing to draw from
    certain = torch.full_like(below, -INF).scatter(-1, first, 0.0) + nothing
    return torch.where(greedy, certain, kept.log_softmax(-1))


def _truncate(below_NV: Tensor, rule: Rule) -> Tensor:
    """−inf for what min-p, top-k and top-p cut from logits whose maximum is 0."""
    width = below_NV.shape[1]
    below_NV = below_NV.masked_fill(below_NV < rule.min_p.to(below_NV.dtype).log()[:, None], -INF)
    counted, weighed = rule.top_k > 0, rule.top_p < 1
    if not (counted | weighed).any():
        return below_NV

    descending = below_NV.sort(-1, descending=True).values
    top_k = torch.where(counted, rule.top_k, width).clamp(max=width)
    last = descending.gather(-1, top_k[:, None].long() - 1)
    below_NV = below_NV.masked_fill(below_NV < last, -INF)

    p = descending.masked_fill(descending < last, -INF).softmax(-1)
    likelier = pad(p.cumsum(-1)[:, :-1], (1, 0))
    count = (likelier < rule.top_p.to(p.dtype)[:, None]).sum(-1, keepdim=True)
    last = descending.gather(-1, count.clamp(min=1) - 1).masked_fill(~weighed[:, None], -INF)
    return below_NV.masked_fill(below_NV < last, -INF)


def _rate(logp_r: Tensor, logp_b: Tensor, logp_primary: Tensor, rule: Rule) -> Tensor:
    """m of the gates that look at a position, not at a token."""
    threshold = rule.threshold.to(logp_r.dtype)
    rate = torch.where(rule.gate == GATES["random"], threshold, 1.0)
    for name, statistic in STATISTICS.items():
        asked = (rule.gate == GATES[name]).nonzero().flatten()
        value = statistic(logp_r[asked], logp_b[asked], logp_primary[asked])
        rate[asked] = (value >= threshold[asked]).to(rate.dtype)
    return rate


def _jensen_shannon(logp: Tensor, logq: Tensor) -> Tensor:
    middle = torch.logaddexp(logp, logq) - math.log(2)
    return (divergence(logp, middle) + divergence(logq, middle)) / 2


STATISTICS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kl": lambda rlvr, base, primary: divergence(rlvr, base),
    "reverse_kl": lambda rlvr, base, primary: divergence(base, rlvr),
    "jsd": lambda rlvr, base, primary: _jensen_shannon(rlvr, base),
    "entropy": lambda rlvr, base, primary: entropy(primary),
}
