"""What a chart shows, apart from how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A line through points, or the outline of a histogram.

    y          one value for each x; of steps, one for each gap between the x.
    low, high  a band around y, or empty.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    steps: bool = False
    dashed: bool = False

    def __post_init__(self) -> None:
        points = len(self.x) - self.steps
        for name, values in (("y", self.y), ("low", self.low), ("high", self.high)):
            if len(values) != points and (name == "y" or len(values)):
                raise ValueError(f"{self.name}: {len(values)} of {name} for {points} points")


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Series on common axes; on a log axis, values of 0 and below are left out."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False

    def x_values(self) -> Iterator[float]:
        for series in self.series:
            yield from (x for x in series.x if drawable(x, self.log_x))

    def y_values(self) -> Iterator[float]:
        for series in self.series:
            for values in (series.y, series.low, series.high):
                yield from (y for y in values if drawable(y, self.log_y))


def drawable(value: float, log: bool) -> bool:
    """Whether a value has a place on an axis."""
    return math.isfinite(value) and (value > 0 or not log)
