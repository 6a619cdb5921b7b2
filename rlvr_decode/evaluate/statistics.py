"""Means with intervals, differences paired by prompt, unbiased pass@k, AUROC.

The unit is always the prompt: samples of one prompt are averaged first, because they share what
makes that prompt hard, and would make an interval too narrow if they counted one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean over prompts and the confidence interval around it."""

    mean: float
    low: float
    high: float
    prompts: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def t_interval(values: Sequence[float], *, level: float = LEVEL) -> Interval:
    """The mean of one value per prompt, with Student's t interval.

    Right for means of a few dozen prompts or more, whatever the values' distribution; values that
    are all equal give an interval of no width, which says nothing about other prompts.

    Raises ValueError for fewer than two values or a level outside (0, 1).
    """
    array = _checked(values, level)
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    half = student_t_quantile((1 + level) / 2, len(array) - 1) * error
    mean = float(array.mean())
    return Interval(mean=mean, low=mean - half, high=mean + half, prompts=len(array))


def bootstrap_interval(
    values: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of one value per prompt, with a bootstrap-t interval over prompts.

    Resampled means are studentised, so that the interval leans as the values do (Efron &
    Tibshirani 1993, §12.5). A resample of equal values has no error to divide by and is left out.
    """
    array = _checked(values, level)
    mean, spread = float(array.mean()), float(array.std(ddof=1))
    low = high = mean
    if spread > 0:
        draws = np.random.default_rng(seed).integers(len(array), size=(resamples, len(array)))
        resampled = array[draws]
        spreads = resampled.std(axis=1, ddof=1)
        t = (resampled.mean(axis=1) - mean)[spreads > 0] / spreads[spreads > 0]
        below, above = np.quantile(t, [(1 - level) / 2, (1 + level) / 2])
        low, high = mean - float(above) * spread, mean - float(below) * spread
    return Interval(mean=mean, low=low, high=high, prompts=len(array))


INTERVALS: dict[str, Callable[..., Interval]] = {"t": t_interval, "bootstrap": bootstrap_interval}


def paired_difference(
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    interval: Callable[..., Interval] = t_interval,
    level: float = LEVEL,
) -> Interval:
    """Mean of ours − theirs over the prompts both were asked, in the same order.

    What makes a prompt hard cancels, so that the interval is narrower than those of two means.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} values against {len(theirs)}: pair them by prompt")
    return interval([a - b for a, b in zip(ours, theirs, strict=True)], level=level)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The probability that one of k samples is correct, without bias (arXiv 2107.03374, eq. 1).

    samples  drawn for the prompt, of which `correct` are; k of them are taken without replacement.
    """
    if not 0 <= correct <= samples:
        raise ValueError(f"correct={correct}: must be from 0 to the {samples} samples")
    if not 1 <= k <= samples:
        raise ValueError(f"k={k}: must be from 1 to the {samples} samples drawn; draw more")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def auroc(positives: ArrayLike, negatives: ArrayLike) -> float:
    """The probability that a positive scores above a negative, ties counting half.

    0.5 is no better than a coin. Raises ValueError if either side is empty.
    """
    above, below = (np.asarray(side, dtype=float) for side in (positives, negatives))
    if not above.size or not below.size:
        raise ValueError(f"{above.size} positives and {below.size} negatives: both are needed")
    ordered = np.sort(below)
    wins = np.searchsorted(ordered, above, "left") + np.searchsorted(ordered, above, "right")
    return float(wins.mean() / (2 * below.size))


@lru_cache(maxsize=256)
def student_t_quantile(probability: float, freedom: int) -> float:
    """The t that a Student variable stays below with this probability, at least a half.

    Bisection of the distribution function in its closed form for whole degrees of freedom
    (Abramowitz & Stegun 26.7.3 and 26.7.4).
    """
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"probability={probability}, freedom={freedom}: not in [0.5, 1) and ≥ 1")
    low, high = 0.0, 1.0
    while _student_t(high, freedom) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_t(middle, freedom) < probability else (low, middle)
    return high


def _student_t(t: float, freedom: int) -> float:
    """P(T ≤ t) for t ≥ 0."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for j in range(3 if odd else 2, freedom - 1, 2):
        term *= (j - 1) / j * cosine * cosine
        total += term
    if odd:
        return 0.5 + (angle + math.sin(angle) * total) / math.pi
    return 0.5 + math.sin(angle) * total / 2


def _checked(values: Sequence[float], level: float) -> NDArray[np.float64]:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must be between 0 and 1")
    if len(values) < 2:
        raise ValueError(f"{len(values)} prompts: an interval needs at least 2; ask more")
    return np.asarray(values, dtype=float)
