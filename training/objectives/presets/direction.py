"""DAPO with token credit: by the token's probability (the Δlog p work and those it compares
with), or by what followed it (FIPO)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from rlvr_decode.training.objectives import trust_regions
from rlvr_decode.training.objectives.checks import clip_range, number
from rlvr_decode.training.objectives.objective import Objective
from rlvr_decode.training.objectives.presets.token import dapo


def reweight(*, alpha: float = 0.2) -> Objective:
    """Δlog p reweighting (arXiv 2603.22117): DAPO with Ã = (1 + alpha·(1 − π_old))·A, detached,
    for both signs of A, not rescaled to mean one.

    Unlikely tokens are where RLVR moves the model, so they learn more: 0.2 for
    Qwen2.5-Math-7B, 0.1 for Qwen3-8B-Base. The literature disagrees on the sign; a negative alpha
    damps them instead, as `dominate` does. The recipe's dual_clip=10 and overlong settings are
    DAPO's options; here they are at DAPO's defaults. (The same on any objective:
    reweighting="reweight", reweighting_alpha=….)
    """
    return _weighted("reweight", alpha)


def dominate(*, alpha: float = 0.2) -> Objective:
    """Advantage reweighting (Yang et al., arXiv 2505.12929): DAPO with
    Ã = (alpha·π_old + 1 − alpha)·A, which damps unlikely tokens. 0.2 to 0.3 for logic puzzles,
    about 0.1 for mathematics."""
    return _weighted("dominate", alpha)


def normalize(*, alpha: float = 0.2) -> Objective:
    """Ablation in the code of arXiv 2603.22117: DAPO with Ã = A / (1 + alpha − π_old). Its alpha
    is not published."""
    return _weighted("normalize", alpha)


def middle(*, alpha: float = 0.2) -> Objective:
    """Ablation in the code of arXiv 2603.22117: DAPO with Ã = (alpha + π_old(1 − π_old))·A. Its
    alpha is not published."""
    return _weighted("middle", alpha)


def ppl(*, alpha: float = 0.2) -> Objective:
    """Perplexity reweighting (Deng et al., as arXiv 2603.22117 compares it): DAPO with
    Ã = (1 − alpha·log PPL(y))·A. The alpha of that comparison is not published."""
    return _weighted("ppl", alpha)


def ppl_norm(*, alpha: float = 0.2) -> Objective:
    """Perplexity reweighting with log PPL(y) standardised within the group (arXiv 2603.22117's
    code), Ã = (1 − alpha·z)·A; otherwise as `ppl`."""
    return _weighted("ppl_norm", alpha)


def fipo(
    *,
    half_life: float = 32.0,
    weight_low: float = 1.0,
    weight_high: float = 1.2,
    outlier: float = 10.0,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> Objective:
    """FIPO (arXiv 2603.19835): DAPO with Ã_t = f_t·A, where f_t = clip(exp(FutureKL_t), …) looks at
    how the update has moved the tokens after t:

        FutureKL_t = Σ_{k≥t} 2^(−(k−t)/half_life)·log r_k,   f in [weight_low, weight_high].

    On-policy f = 1. [1, 1.2] and half-life 32 are the 32B settings. Tokens with A < 0 and
    r > outlier neither count nor are reweighted.
    """
    clip_range(clip_low, clip_high)
    number("half_life", half_life, low=1e-6)
    number("outlier", outlier, low=1.0)
    number("weight_low", weight_low, low=0.0, high=1.0)
    number("weight_high", weight_high, low=1.0)
    loss = partial(
        trust_regions.fipo,
        clip_low=clip_low,
        clip_high=clip_high,
        half_life=half_life,
        weight_low=weight_low,
        weight_high=weight_high,
        outlier=outlier,
    )
    return replace(dapo(), name="fipo", policy_loss=loss)


def _weighted(kind: str, alpha: float) -> Objective:
    number("alpha", alpha)
    return replace(dapo(), name=kind, reweighting=kind, reweighting_alpha=alpha)
