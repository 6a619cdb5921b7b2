"""Histograms and tails of Δ, entropy and KL on either model's own responses, and their AUROC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlvr_decode.analyze.tokens import Tokens
from rlvr_decode.charts import Chart, Series
from rlvr_decode.evaluate.statistics import LEVEL, auroc

METRICS = {
    "delta": "Δ = log p_rlvr − log p_base",
    "kl": "KL(rlvr ‖ base)",
    "jsd": "Jensen–Shannon divergence",
    "base_entropy": "entropy of base",
    "rlvr_entropy": "entropy of rlvr",
}
_BINS = 60
_TAILS = (0.1, 0.5, 1.0, 3.0)
_QUANTILES = (0.001, 0.01, 0.05, 0.5, 0.95, 0.99, 0.999)
_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Separation:
    """How well a metric of a token tells rlvr's responses from base's, with a 95 % interval.

    of_tokens     AUROC over single tokens; 0.5 is a coin's.
    of_responses  AUROC over responses, each by the sum of its tokens.
    """

    of_tokens: float
    low: float
    high: float
    of_responses: float


def separations(base: Tokens, rlvr: Tokens) -> dict[str, Separation]:
    """For every metric; intervals by resampling responses, whose tokens belong together."""
    return {name: _separation(base, rlvr, name) for name in METRICS}


def _separation(base: Tokens, rlvr: Tokens, metric: str) -> Separation:
    generator = np.random.default_rng(0)
    grouped = [_by_response(tokens, metric) for tokens in (rlvr, base)]
    resampled = []
    for _ in range(_RESAMPLES):
        drawn = []
        for groups in grouped:
            chosen = generator.integers(len(groups), size=len(groups))
            drawn.append(np.concatenate([groups[k] for k in chosen]))
        resampled.append(auroc(*drawn))
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    sums = [np.array([group.sum() for group in groups]) for groups in grouped]
    return Separation(
        of_tokens=auroc(getattr(rlvr, metric), getattr(base, metric)),
        low=float(low),
        high=float(high),
        of_responses=auroc(*sums),
    )


def _by_response(tokens: Tokens, metric: str) -> list[NDArray[np.float64]]:
    values: NDArray[np.float64] = getattr(tokens, metric)
    starts = np.flatnonzero(np.diff(tokens.response)) + 1
    return np.split(values, starts)


def tails(tokens: Tokens) -> dict[str, Any]:
    """How rare the differences are, and how far they reach."""
    size = np.abs(tokens.delta)
    return {
        "tokens": len(tokens),
        "mean_delta": float(tokens.delta.mean()),
        "mean_kl": float(tokens.kl.mean()),
        "mean_base_entropy": float(tokens.base_entropy.mean()),
        "mean_rlvr_entropy": float(tokens.rlvr_entropy.mean()),
        "share_beyond": {f"{cut:g}": float((size > cut).mean()) for cut in _TAILS},
        "share_above": {f"{cut:g}": float((tokens.delta > cut).mean()) for cut in _TAILS},
        "share_below": {f"{-cut:g}": float((tokens.delta < -cut).mean()) for cut in _TAILS},
        "quantiles": {
            name: {f"{q:g}": float(np.quantile(getattr(tokens, name), q)) for q in _QUANTILES}
            for name in METRICS
        },
        "same_first_token": float((tokens.base_first == tokens.rlvr_first).mean()),
    }


def histograms(authors: Mapping[str, Tokens]) -> dict[str, dict[str, list[float]]]:
    """By metric: the edges, and by author the density in each bin."""
    made = {}
    for name in METRICS:
        values = {author: getattr(tokens, name) for author, tokens in authors.items()}
        everything = np.concatenate(list(values.values()))
        edges = np.linspace(everything.min(), everything.max(), _BINS + 1)
        if edges[0] == edges[-1]:
            edges = np.linspace(edges[0] - 0.5, edges[0] + 0.5, _BINS + 1)
        density = {
            author: np.histogram(each, edges, density=True)[0].tolist()
            for author, each in values.items()
        }
        made[name] = {"edges": edges.tolist(), **density}
    return made


def histogram_charts(found: Mapping[str, Mapping[str, list[float]]]) -> list[Chart]:
    """Densities on a log scale: nearly every token is at 0, what matters is in the tails."""
    return [
        Chart(
            title=METRICS[name],
            x_label="nats",
            y_label="density of tokens, log",
            series=[
                Series(name=f"{author}'s responses", x=bins["edges"], y=bins[author], steps=True)
                for author in bins
                if author != "edges"
            ],
            log_y=True,
        )
        for name, bins in found.items()
    ]


def by_delta(tables: Sequence[Tokens], *, bins: int = 12) -> list[dict[str, float]]:
    """Mean probabilities of tokens by Δ: the large ones belong to tokens that are rare for base."""
    delta, base, rlvr = (
        np.concatenate([getattr(tokens, name) for tokens in tables])
        for name in ("delta", "base", "rlvr")
    )
    edges = np.linspace(delta.min(), delta.max() + 1e-9, bins + 1)
    rows = []
    for low, high in pairwise(edges):
        chosen = (delta >= low) & (delta < high)
        if chosen.any():
            rows.append(
                {
                    "low": float(low),
                    "high": float(high),
                    "tokens": int(chosen.sum()),
                    "base_probability": float(np.exp(base[chosen]).mean()),
                    "rlvr_probability": float(np.exp(rlvr[chosen]).mean()),
                }
            )
    return rows
