"""How the update lies in the weights, as a table, JSON and a chart over depth.

The measures are those of `rlvr_decode.geometry`; no text and no task is needed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from tqdm import tqdm

from rlvr_decode.charts import Chart, Series
from rlvr_decode.charts.png import save
from rlvr_decode.geometry import MatrixGeometry, matrix_geometry
from rlvr_decode.matrices import LINEAR_LAYERS, layer_of, matrix_pairs
from rlvr_decode.pair import Pair
from rlvr_decode.weights import Weights

Summary = dict[str, dict[str, float | None]]
"""By kind of layer, and "all": the median over its matrices of each measure of `COLUMNS`."""

# Column of the table: of which measure, and how it is written.
COLUMNS: dict[str, tuple[str, str]] = {
    "relative_norm": ("‖ΔW‖ / ‖W‖", ".2e"),
    "effective_rank": ("effective rank of ΔW", ".1f"),
    "sparsity": ("entries unchanged", ".1%"),
    "spectral_shift": ("spectral shift", ".1e"),
    "left_angle": ("angle out, °", ".2f"),
    "right_angle": ("angle in, °", ".2f"),
    "head_alignment": ("ΔW on W's head", ".1%"),
    "low_overlap": ("changes among small", ".1%"),
    "principal_overlap": ("changes among principal", ".1%"),
}
HEADS = ("layer", *(label for label, _ in COLUMNS.values()))
_DRAWN = ("relative_norm", "effective_rank", "sparsity", "low_overlap")


def main(argv: Sequence[str]) -> int:
    """Print the geometry of a pair's update and write it to a directory."""
    parser = argparse.ArgumentParser(prog="rlvr-decode analyze", description=main.__doc__)
    parser.add_argument("pair", help="a name, a directory, or a pair.json")
    parser.add_argument("--geometry", action="store_true", required=True)
    parser.add_argument("-o", "--out", default="analysis", help="directory (default: analysis)")
    args = parser.parse_args(argv)
    out = Path(args.out)
    try:
        print(table(geometry_report(Pair.open(args.pair), out)))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print("Medians; a random update would have 30 % of its changes among small, and principal.")
    print(f"{out / 'geometry.json'}\n{out / 'geometry.png'}")
    return 0


def geometry_report(pair: Pair, out: Path, *, top: int = 16, fraction: float = 0.3) -> Summary:
    """Measure every linear layer; write geometry.json and geometry.png, return the medians.

    top       leading singular directions that angles and alignment look at.
    fraction  of the entries in each overlap mask; a random update overlaps by that much.

    Matrices are read one at a time; see `geometry.analyze_geometry` for the cost.
    """
    base, rlvr = pair.base.fetch(), pair.rlvr.fetch()
    count = sum(layer_of(name) in LINEAR_LAYERS for name in Weights.open(base))
    found = [
        matrix_geometry(name, before, after, top=top, fraction=fraction)
        for name, before, after in tqdm(matrix_pairs(base, rlvr), total=count, desc="geometry")
    ]
    summary = summarise(found)
    out.mkdir(parents=True, exist_ok=True)
    values = {
        "pair": pair.name,
        "top": top,
        "fraction": fraction,
        "medians": summary,
        "matrices": [asdict(matrix) for matrix in found],
    }
    text = json.dumps(values, indent=1, allow_nan=False)
    (out / "geometry.json").write_text(text + "\n", encoding="utf-8")
    save([_chart(measure, found) for measure in _DRAWN], out / "geometry.png")
    return summary


def summarise(found: Sequence[MatrixGeometry]) -> Summary:
    """Medians by kind of layer, in the order of a decoder layer, and over all."""
    every = [asdict(matrix) for matrix in found]
    groups = {
        kind: [each for each in every if layer_of(each["name"]) == kind] for kind in LINEAR_LAYERS
    }
    return {
        kind: {measure: _median([each[measure] for each in group]) for measure in COLUMNS}
        for kind, group in (groups | {"all": every}).items()
        if group
    }


def table(summary: Summary) -> str:
    """The medians in Markdown, a row for each kind of layer."""
    lines = [_row(HEADS), "|---|" + "---:|" * len(COLUMNS)]
    return "\n".join(lines + [_row(cells) for cells in rows(summary)])


def rows(summary: Summary) -> list[list[str]]:
    """The cells of the table, the kind of layer first."""
    return [
        [kind, *(written(medians[measure], style) for measure, (_, style) in COLUMNS.items())]
        for kind, medians in summary.items()
    ]


def written(value: float | None, style: str) -> str:
    """A number in its column's style; – where nothing changed."""
    return "–" if value is None else format(value, style)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _chart(measure: str, found: Sequence[MatrixGeometry]) -> Chart:
    """One measure over depth, a line for each kind of layer."""
    lines: dict[str, dict[int, float]] = {}
    for matrix in found:
        value: float | None = asdict(matrix)[measure]
        depth = re.search(r"\.(\d+)\.", matrix.name)
        if value is not None and depth is not None:
            lines.setdefault(str(layer_of(matrix.name)), {})[int(depth[1])] = value
    series = [
        Series(name=kind, x=sorted(values), y=[values[depth] for depth in sorted(values)])
        for kind, values in _in_order(lines).items()
    ]
    return Chart(title=COLUMNS[measure][0], x_label="layer", y_label="", series=series)


def _in_order(lines: Mapping[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    return {kind: lines[kind] for kind in LINEAR_LAYERS if kind in lines}
