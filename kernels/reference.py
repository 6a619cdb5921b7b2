"""The definition of every operation, in plain PyTorch.

Slow, clear, and right in any floating dtype: the arithmetic runs in the dtype of the logits, so
float64 inputs make an oracle. The fast versions beside this file must agree with it.

Shapes: N rows of logits, V and W columns (rlvr, base), K chosen tokens of a row.

The two models may pad their vocabularies differently. What they have in common is the first
min(V, W) columns; log-softmaxes are taken over those.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

INF = float("inf")
NAN = float("nan")


def extrapolate(
    rlvr_NV: Tensor, base_NW: Tensor, strength_N: Tensor, plausibility_N: Tensor
) -> Tensor:
    """Push each row of rlvr's logits further from base: z = r + strength · (log p_r − log p_b).

    softmax(z) ∝ p_rlvr · (p_rlvr / p_base)^strength: strength −1 is base, 0 is rlvr, above 0 goes
    beyond (arXiv 2603.22117, §4.1). Returns z_NV in the dtype of `rlvr_NV`.

    strength 0       The row is returned bit for bit, whatever it holds.
    plausibility     For strength > 0 only tokens with p_r ≥ plausibility · max p_r remain; the
                     others become −inf (contrastive decoding's V_head, arXiv 2210.15097, §3.3).
                     At strength ≤ 0 z lies between the two models and nothing is cut.
    −inf in rlvr     Stays −inf at every strength: a token that is masked is never brought back.
    −inf in base     Δ is +inf there. For strength < 0 the token becomes −inf, as base has it. For
                     strength > 0 that Δ says nothing about how far to go, and would win against
                     every other token: Δ counts as 0 and the token keeps rlvr's logit.
    padding          Columns that base lacks become −inf, except in rows of strength 0.
    NaN, +inf        No distribution: they make the row's surviving tokens NaN, never a number.
                     From other inputs neither arises while z fits its dtype.
    """
    vocab = min(rlvr_NV.shape[1], base_NW.shape[1])
    r, b = rlvr_NV[:, :vocab], base_NW[:, :vocab]
    strength = strength_N.to(r.dtype)[:, None]
    plausibility = plausibility_N.to(r.dtype)[:, None]
    beyond = strength > 0

    delta = r.log_softmax(-1) - b.log_softmax(-1)
    delta = delta.masked_fill((b == -INF) & beyond, 0.0).masked_fill((b == -INF) & ~beyond, INF)
    z = r + strength * delta

    # p_r ≥ plausibility · max p_r without its normaliser. Written as "not below", which keeps NaN.
    implausible = beyond & (r < r.amax(-1, keepdim=True) + plausibility.log())
    z = z.masked_fill((r == -INF) | implausible, -INF)
    z = pad(z, (0, rlvr_NV.shape[1] - vocab), value=-INF)
    return torch.where(strength == 0, rlvr_NV, z)


class DeltaLogprobs(NamedTuple):
    """How two models see the same rows; in nats."""

    rlvr: Tensor
    """log p_rlvr of each chosen token; the shape of `tokens`."""
    base: Tensor
    """log p_base of each chosen token."""
    delta: Tensor
    """Δ = log p_rlvr − log p_base; 0 where both models rule the token out."""
    rlvr_entropy: Tensor
    """Entropy of p_rlvr, one per row [N]."""
    base_entropy: Tensor
    """Entropy of p_base, one per row [N]."""
    kl: Tensor
    """KL(p_rlvr ‖ p_base), one per row [N]; +inf where rlvr allows a token that base rules out."""


def delta_logprobs(rlvr_NV: Tensor, base_NW: Tensor, tokens: Tensor) -> DeltaLogprobs:
    """What RLVR changed: chosen tokens' log p under both models, and each row's entropies and KL.

    `tokens` are ids of shape [N] or [N, K]. An id outside the common vocabulary has no log p: NaN.
    So has a row that is no distribution (all −inf, or holding NaN or +inf). 0 · log 0 counts as 0.
    """
    vocab = min(rlvr_NV.shape[1], base_NW.shape[1])
    r, b = rlvr_NV[:, :vocab], base_NW[:, :vocab]
    logp_r, logp_b = r.log_softmax(-1), b.log_softmax(-1)

    chosen_r, chosen_b = choose(logp_r, tokens), choose(logp_b, tokens)
    delta = chosen_r - chosen_b
    delta = delta.masked_fill((chosen_r == -INF) & (chosen_b == -INF), 0.0)

    return DeltaLogprobs(
        rlvr=chosen_r,
        base=chosen_b,
        delta=delta,
        rlvr_entropy=entropy(logp_r),
        base_entropy=entropy(logp_b),
        kl=divergence(logp_r, logp_b),
    )


def choose(logp_NV: Tensor, tokens: Tensor) -> Tensor:
    """The entries of `tokens` ([N] or [N, K]) in each row; NaN for an id that is no column."""
    known = (tokens >= 0) & (tokens < logp_NV.shape[1])
    ids = tokens.masked_fill(~known, 0).long()
    ids_NK = ids if ids.dim() == 2 else ids[:, None]
    return logp_NV.gather(-1, ids_NK).reshape(tokens.shape).masked_fill(~known, NAN)


def entropy(logp_NV: Tensor) -> Tensor:
    """Entropy of each row, in nats. 0 · log 0 is 0."""
    return -(logp_NV.exp() * logp_NV.masked_fill(logp_NV == -INF, 0.0)).sum(-1)


def divergence(logp_NV: Tensor, logq_NV: Tensor) -> Tensor:
    """KL(p ‖ q) of each row, in nats; +inf where p allows what q rules out."""
    impossible_p, impossible_q = logp_NV == -INF, logq_NV == -INF
    surprise = (logp_NV - logq_NV).masked_fill(impossible_p | impossible_q, 0.0)
    kl = (logp_NV.exp() * surprise).sum(-1)
    # Added apart: within the sum, a p that underflows would meet q's −inf as 0 · inf.
    escapes = (~impossible_p & impossible_q).any(-1)
    return kl + torch.zeros_like(kl).masked_fill(escapes, INF)
