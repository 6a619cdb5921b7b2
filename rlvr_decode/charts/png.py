"""Charts as one PNG, side by side, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlvr_decode.charts.chart import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save(charts: Sequence[Chart], path: Path, *, columns: int = 2) -> None:
    """Write the charts to `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.2 * rows), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(charts) :]:
        axis.set_visible(False)
    for chart, axis in zip(charts, axes, strict=False):
        _draw(chart, axis)
    figure.savefig(path)


def _draw(chart: Chart, axis: Axes) -> None:
    for series in chart.series:
        if series.steps:
            axis.stairs(series.y, series.x, label=series.name, linewidth=1.6)
            continue
        style = "--" if series.dashed else "-"
        [line] = axis.plot(series.x, series.y, style, marker="o", markersize=4, label=series.name)
        if series.low:
            axis.fill_between(series.x, series.low, series.high, alpha=0.15, color=line.get_color())
    axis.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    axis.set_xscale("log" if chart.log_x else "linear")
    axis.set_yscale("log" if chart.log_y else "linear")
    axis.grid(alpha=0.3)
    if len(chart.series) > 1:
        axis.legend(fontsize="small")
