"""A run's curves as one picture: reward, KL, entropy, length, and pass@k where it was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_REACH = re.compile(r"pass_at_\d+")
_PANELS = {
    "reward": ("reward", "held_out"),
    "KL": ("kl_ref", "kl_old", "rollout_kl"),
    "entropy": ("entropy",),
    "length": ("length",),
}


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG of a run's metrics, one panel for each kind that there are numbers of.

    A run that only pretrains has none, and no picture.
    """
    panels = chosen(lines)
    if not panels:
        return
    # Imported late, because it takes a second, and drawn without a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(panels), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), label=name, marker=".", markersize=3)
        axes.set(title=title, xlabel="step")
        axes.legend(fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def chosen(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The panels there is something to draw in, and the metrics of each."""
    known = list(dict.fromkeys(name for line in lines for name in line))
    passes = tuple(name for name in known if _REACH.fullmatch(name))
    panels = {
        title: [name for name in names if name in known]
        for title, names in {**_PANELS, "pass@k": passes}.items()
    }
    return {title: names for title, names in panels.items() if names}
