"""Listwise projections: LPO under five divergences, and TPO."""

from __future__ import annotations

from functools import partial
from typing import TypedDict, Unpack

from rlvr_decode.training.objectives import policy_losses
from rlvr_decode.training.objectives.checks import number, one_of
from rlvr_decode.training.objectives.divergences import alpha_divergence
from rlvr_decode.training.objectives.listwise import (
    LOGIT_REDUCTIONS,
    SIMPLEX_BASES,
    TEMPERATURES,
    Coefficients,
    Projection,
)
from rlvr_decode.training.objectives.objective import Objective

CLIP_MODES = ("pessimistic", "hard", "none")
AGGREGATION_OF = {"mean": "list_mean", "sum": "list_sum", "sum_over_const": "list_constant"}


class ListOptions(TypedDict, total=False):
    """The options of every listwise preset; `_list_objective` has their defaults."""

    temperature: str | float
    scale: float
    logit_reduction: str
    simplex_base: str
    ddof: int
    eps: float
    clip: float
    clip_mode: str
    max_tokens: int | None


def lpo_fwd(**options: Unpack[ListOptions]) -> Objective:
    """LPO, forward KL (arXiv 2605.06139): minimise KL(w*‖P), w* = softmax(R/τ),

        loss = (1/prompts) Σ_k c_k · mean_t clip(log r_kt),   c = P − w*.

    Bounded (|c| ≤ 1), zero-sum and self-correcting: strengthens rare successes and caps the push
    down at 1/K. On-policy it is the policy gradient with A = K·w* − 1. Paper: K 8, lr 1e-6, two
    mini-batches per batch of rollouts, no KL, no entropy bonus.

    Options: temperature ("sigma" as GRPO, "one" as Dr. GRPO, "mu" as MaxRL, "batch_sigma", or a
    number), scale, logit_reduction, simplex_base, ddof, eps, clip, clip_mode, max_tokens.

    Read into the paper: the 1/|y| of eq. 3 (logit_reduction="mean"; "sum" is its theory taken
    literally), P from uncut ratios, and the clip's mode: the text says δ is clipped ("hard") and
    cites PPO ("pessimistic", the default, from which a token can come back).
    """
    return _list_objective("lpo_fwd", "forward_kl", **options)


def lpo_rev(**options: Unpack[ListOptions]) -> Objective:
    """LPO, reverse KL (arXiv 2605.06139): minimise KL(P‖w*), c = P(d − Σ P d), d = log P − log w*.

    The same as maximising Σ P·R/τ + H(P); zero-sum and self-correcting, but not bounded. On-policy
    it is GRPO ("sigma", with GRPO's ddof), Dr. GRPO ("one") or MaxRL ("mu") with A/K. Options as
    for lpo_fwd.
    """
    return _list_objective("lpo_rev", "reverse_kl", **options)


def lpo_js(**options: Unpack[ListOptions]) -> Objective:
    """LPO, Jensen-Shannon: the paper (arXiv 2605.06139, App. C.6) names it, the coefficient follows
    from its generic formula. Options as for lpo_fwd."""
    return _list_objective("lpo_js", "js", **options)


def lpo_hellinger(**options: Unpack[ListOptions]) -> Objective:
    """LPO, squared Hellinger distance: not in the paper (arXiv 2605.06139); the coefficient follows
    from its generic formula. Options as for lpo_fwd."""
    return _list_objective("lpo_hellinger", "hellinger", **options)


def lpo_alpha(*, alpha: float = 0.5, **options: Unpack[ListOptions]) -> Objective:
    """LPO, α-divergence: alpha → 1 is forward KL, → 0 reverse KL, ½ four times Hellinger. Not in
    the paper (arXiv 2605.06139); the coefficient follows from its generic formula. Options as for
    lpo_fwd."""
    number("alpha", alpha)
    if alpha in (0, 1):
        raise ValueError(f"alpha={alpha!r}: use lpo_rev for 0 and lpo_fwd for 1")
    return _list_objective("lpo_alpha", partial(alpha_divergence, alpha=alpha), **options)


def tpo(*, eta: float = 1.0, **options: Unpack[ListOptions]) -> Objective:
    """TPO (Kaddour, arXiv 2604.06159): target q ∝ p_old·exp(u/η) on the policy's own distribution
    p = softmax(Σ_t log π) over the list, u the standardised reward, loss −Σ q log p, c = p − q.

    η from 0.25 to 2 works; no clip, several epochs are safe. Paper: K 16, AdamW at 1e-5. It is
    lpo_fwd with simplex_base="policy", sums for logits and no clip: short, likely responses
    dominate its list. No relation to Triple Preference Optimization. Options as for lpo_fwd.
    """
    number("eta", eta, low=1e-6)
    settings: ListOptions = {
        "logit_reduction": "sum",
        "simplex_base": "policy",
        "clip_mode": "none",
        "scale": eta,
    }
    return _list_objective("tpo", "forward_kl", **(settings | options))


def _list_objective(
    name: str,
    divergence: str | Coefficients,
    *,
    temperature: str | float = "sigma",
    scale: float = 1.0,
    logit_reduction: str = "mean",
    simplex_base: str = "ratio",
    ddof: int = 0,
    eps: float = 1e-6,
    clip: float = 0.2,
    clip_mode: str = "pessimistic",
    max_tokens: int | None = None,
) -> Objective:
    if isinstance(temperature, str):
        one_of("temperature", temperature, TEMPERATURES)
    else:
        number("temperature", temperature, low=1e-6)
    one_of("logit_reduction", logit_reduction, LOGIT_REDUCTIONS)
    one_of("simplex_base", simplex_base, SIMPLEX_BASES)
    one_of("clip_mode", clip_mode, CLIP_MODES)
    number("scale", scale, low=1e-6)
    number("clip", clip, low=0.0, high=0.999)
    number("eps", eps, low=0.0)
    one_of("ddof", ddof, (0, 1))
    return Objective(
        name=name,
        credit=Projection(
            divergence=divergence,
            temperature=temperature,
            scale=scale,
            logit_reduction=logit_reduction,
            simplex_base=simplex_base,
            ddof=ddof,
            max_tokens=max_tokens,
            eps=eps,
        ),
        policy_loss=partial(policy_losses.listwise, clip=clip, clip_mode=clip_mode),
        aggregation=AGGREGATION_OF[logit_reduction],
        max_tokens=max_tokens,
    )
