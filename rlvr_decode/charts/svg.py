"""A chart as SVG to put into a page: its colours are the page's, so it follows light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from rlvr_decode.charts.chart import Chart, Series, drawable

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 42, 46
COLOURS = 6

# Of the page that a chart is put into: CSS variables in light and in dark.
STYLE = """
:root { --paper: #ffffff; --ink: #1b1f24; --faint: #6a737d; --rule: #e3e7ec;
  --c0: #0f62ac; --c1: #c2410c; --c2: #15803d; --c3: #7c3aed; --c4: #a16207; --c5: #be185d; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171c; --ink: #e6e9ee; --faint: #98a2ae; --rule: #2a2f37;
    --c0: #6cb1f5; --c1: #fb9a6a; --c2: #62cf8a; --c3: #b79bff; --c4: #e0b354; --c5: #f48fb9; } }
.chart { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.chart text { fill: var(--faint); } .chart .title { fill: var(--ink); font-weight: 600;
  font-size: 14px; } .chart .grid { stroke: var(--rule); }
.chart .line { fill: none; stroke-width: 2; } .chart .band { opacity: 0.16; }
"""


class Axis(NamedTuple):
    """Values to pixels along one side."""

    place: Callable[[float], float]
    ticks: list[float]


def render(chart: Chart) -> str:
    """The chart as an <svg> element; `STYLE` belongs into the page once."""
    x = _axis(list(chart.x_values()), chart.log_x, LEFT, WIDTH - RIGHT)
    y = _axis(list(chart.y_values()), chart.log_y, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(chart.title)}">',
        f'<text class="title" x="{LEFT}" y="14">{escape(chart.title)}</text>',
        *_grid(chart, x, y),
    ]
    for number, series in enumerate(chart.series):
        parts += _series(chart, series, f"var(--c{number % COLOURS})", x, y)
    return "\n".join([*parts, *_legend(chart), "</svg>"])


def _axis(values: Sequence[float], log: bool, start: float, end: float) -> Axis:
    if not values:
        raise ValueError("a chart needs a value it can show")
    scale = math.log10 if log else float
    low, high = scale(min(values)), scale(max(values))
    if low == high:
        low, high = low - 0.5, high + 0.5
    margin = 0.04 * (high - low)
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return round(start + (scale(value) - low) / (high - low) * (end - start), 1)

    ticks = [10.0**t for t in _steps(low, high, whole=True)] if log else _steps(low, high)
    return Axis(place, ticks)


def _steps(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About five round numbers from low to high."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step)
    return [round(k * step, 10) for k in range(first, math.floor(high / step) + 1)]


def _grid(chart: Chart, x: Axis, y: Axis) -> list[str]:
    parts = []
    for tick in y.ticks:
        at = y.place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{at + 4}" text-anchor="end">{_number(tick)}</text>')
    for tick in x.ticks:
        at = x.place(tick)
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text x="{at}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{_number(tick)}</text>'
        )
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    parts.append(
        f'<text x="14" y="{middle_y}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle_y})">{escape(chart.y_label)}</text>'
    )
    return parts


def _series(chart: Chart, series: Series, colour: str, x: Axis, y: Axis) -> list[str]:
    if series.steps:
        return [_outline(chart, series, colour, x, y)]
    shown = [
        k
        for k in range(len(series.x))
        if drawable(series.x[k], chart.log_x) and drawable(series.y[k], chart.log_y)
    ]
    parts = []
    if series.low:
        upper = [f"{x.place(series.x[k])},{y.place(series.high[k])}" for k in shown]
        lower = [f"{x.place(series.x[k])},{y.place(series.low[k])}" for k in reversed(shown)]
        points = " ".join(upper + lower)
        parts.append(f'<polygon class="band" fill="{colour}" points="{points}"/>')
    points = " ".join(f"{x.place(series.x[k])},{y.place(series.y[k])}" for k in shown)
    dash = ' stroke-dasharray="6 4"' if series.dashed else ""
    parts.append(f'<polyline class="line" stroke="{colour}"{dash} points="{points}"/>')
    for k in shown:
        band = f" [{series.low[k]:.3f}, {series.high[k]:.3f}]" if series.low else ""
        words = f"{series.name}: {_number(series.x[k])}, {series.y[k]:.3f}{band}"
        parts.append(
            f'<circle cx="{x.place(series.x[k])}" cy="{y.place(series.y[k])}" r="3.2" '
            f'fill="{colour}"><title>{escape(words)}</title></circle>'
        )
    return parts


def _outline(chart: Chart, series: Series, colour: str, x: Axis, y: Axis) -> str:
    floor = HEIGHT - BOTTOM
    points = []
    for (left, right), value in zip(pairwise(series.x), series.y, strict=True):
        top = y.place(value) if drawable(value, chart.log_y) else floor
        points += [f"{x.place(left)},{top}", f"{x.place(right)},{top}"]
    return f'<polyline class="line" stroke="{colour}" points="{" ".join(points)}"/>'


def _legend(chart: Chart) -> list[str]:
    if len(chart.series) < 2:
        return []
    parts, at = [], WIDTH - RIGHT
    for number, series in reversed(list(enumerate(chart.series))):
        at -= 7 * len(series.name) + 24
        colour = f"var(--c{number % COLOURS})"
        parts.append(f'<rect x="{at}" y="28" width="12" height="3" fill="{colour}"/>')
        parts.append(f'<text x="{at + 16}" y="33">{escape(series.name)}</text>')
    return parts


def _number(value: float) -> str:
    return f"{value:.0e}" if value and not 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"
