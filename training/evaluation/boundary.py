"""How far a model reaches: unbiased pass@k, and its gap to base on the same prompts.

A model that answers more often at k = 1 and less often at large k has shrunk its boundary; RLVR's
debate (arXiv 2510.04028) is about the sign of that gap.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Gap(NamedTuple):
    """pass@k of a model minus that of base, in the mean over prompts."""

    k: int
    model: float
    base: float
    difference: float
    standard_error: float


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that k of the samples, drawn without replacement, hold a correct one.

    1 − C(n − c, k) / C(n, k), unbiased for the pass rate in k fresh draws, computed as
    1 − Π_{i = n−c+1 … n} (1 − k/i), which neither overflows nor cancels.
    """
    if not 0 <= correct <= samples:
        raise ValueError(f"correct={correct} of samples={samples}: must be from 0 to {samples}")
    if not 1 <= k <= samples:
        raise ValueError(f"k={k}: must be from 1 to {samples}, the samples drawn per prompt")
    return 1 - math.prod(1 - k / i for i in range(samples - correct + 1, samples + 1))


def pass_curve(correct: Sequence[int], samples: int, ks: Sequence[int]) -> dict[int, float]:
    """Mean pass@k over prompts, each with its number of correct samples."""
    return {k: statistics.fmean(pass_at_k(samples, c, k) for c in correct) for k in ks}


def boundary_gap(
    model_correct: Sequence[int], base_correct: Sequence[int], samples: int, ks: Sequence[int]
) -> list[Gap]:
    """The gap for every k, with the standard error of its paired differences.

    Both sequences count correct samples of the same prompts in the same order; at least two.
    """
    if len(model_correct) != len(base_correct) or len(model_correct) < 2:
        raise ValueError(
            f"{len(model_correct)} prompts for the model and {len(base_correct)} for base: "
            "give the same prompts to both, at least 2"
        )
    gaps = []
    for k in ks:
        model = [pass_at_k(samples, c, k) for c in model_correct]
        base = [pass_at_k(samples, c, k) for c in base_correct]
        differences = [m - b for m, b in zip(model, base, strict=True)]
        gaps.append(
            Gap(
                k=k,
                model=statistics.fmean(model),
                base=statistics.fmean(base),
                difference=statistics.fmean(differences),
                standard_error=statistics.stdev(differences) / math.sqrt(len(differences)),
            )
        )
    return gaps
