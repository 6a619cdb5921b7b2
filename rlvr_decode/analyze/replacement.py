"""Selective token replacement: how few of base's tokens must be rlvr's for rlvr's accuracy.

A token is drawn from base; where a criterion says so it is drawn again from rlvr (arXiv 2603.22117,
§3). Every criterion is swept over thresholds at quantiles of its own values on base's responses, so
that the criteria can be compared at the same share of replaced tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlvr_decode.analyze.tokens import Tokens
from rlvr_decode.charts import Chart, Series
from rlvr_decode.evaluate.arms import Arm
from rlvr_decode.evaluate.statistics import Interval
from rlvr_decode.evaluate.summary import Summary
from rlvr_decode.params import THRESHOLD_RANGES, Extrapolation

CRITERIA = ("delta", "kl", "jsd", "entropy", "random")
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_METRIC = {"delta": "delta", "kl": "kl", "jsd": "jsd", "entropy": "base_entropy"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One criterion at one threshold; `share` of the tokens were replaced."""

    criterion: str
    threshold: float | None
    share: float
    accuracy: Interval


def replacement_arms(
    base: Tokens, *, criteria: Sequence[str], shares: Sequence[float], temperature: float
) -> dict[str, list[Arm]]:
    """The arms of each criterion, from few replacements to all; base's own arm is the first.

    base  tokens of base's responses, whose quantiles make the thresholds.
    """
    for criterion in criteria:
        if criterion not in CRITERIA:
            raise ValueError(f"criterion {criterion!r}: must be one of {', '.join(CRITERIA)}")
    for share in shares:
        if not 0 < share < 1:
            raise ValueError(f"share {share:g}: must be between 0 and 1")

    def arm(gate: str, threshold: float | None) -> Arm:
        setting = Extrapolation(gate=gate, threshold=threshold, primary="base")
        return Arm(extrapolation=setting, temperature=temperature)

    none = Arm(extrapolation=Extrapolation(strength=-1.0), temperature=temperature)
    every = arm("all", None)
    swept = {}
    for criterion in criteria:
        thresholds = dict.fromkeys(_threshold(base, criterion, share) for share in sorted(shares))
        swept[criterion] = [none, *(arm(criterion, each) for each in thresholds), every]
    return swept


def _threshold(base: Tokens, criterion: str, share: float) -> float:
    """What the criterion must compare with to act at about this share of base's tokens."""
    if criterion == "random":
        return share
    values = getattr(base, _METRIC[criterion])
    # Δ acts at and below its threshold, the others at and above.
    found = np.quantile(values, share if criterion == "delta" else 1 - share)
    low, high = THRESHOLD_RANGES[criterion]
    return float(min(max(round(float(found), 6), low), high))


def points(swept: dict[str, list[Arm]], found: dict[Arm, Summary]) -> list[Point]:
    """What the arms gave, ascending in share within a criterion."""
    return [
        Point(
            criterion=criterion,
            threshold=arm.extrapolation.threshold,
            share=found[arm].rate or 0.0,
            accuracy=found[arm].accuracy,
        )
        for criterion, arms in swept.items()
        for arm in sorted(arms, key=lambda arm: found[arm].rate or 0.0)
    ]


def chart(found: Sequence[Point], rlvr: Summary) -> Chart:
    """Accuracy against the share replaced, with plain rlvr's as a dashed line."""
    series = []
    for criterion in dict.fromkeys(point.criterion for point in found):
        line = [point for point in found if point.criterion == criterion and point.share > 0]
        series.append(
            Series(
                name="Δ" if criterion == "delta" else criterion,
                x=[100 * point.share for point in line],
                y=[point.accuracy.mean for point in line],
                low=[point.accuracy.low for point in line],
                high=[point.accuracy.high for point in line],
            )
        )
    shares = [x for line in series for x in line.x]
    plain = [rlvr.accuracy.mean] * 2
    series.append(Series(name="rlvr", x=[min(shares), max(shares)], y=plain, dashed=True))
    return Chart(
        title="Base's tokens replaced by rlvr's",
        x_label="tokens replaced, %, log",
        y_label="accuracy",
        series=series,
        log_x=True,
    )
