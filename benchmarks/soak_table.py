"""The table of the soak's results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
COLUMNS: dict[str, Callable[[Report], object]] = {
    "pair": lambda r: f"{r['pair']}, {r['rlvr']}",
    "runner": lambda r: r["runner"],
    "answered": lambda r: r["finished"],
    "aborted": lambda r: r["aborted"],
    "distinct (gated)": lambda r: f"{r['distinct']} ({r['gated']})",
    "tokens": lambda r: r["generation_tokens"],
    "preemptions": lambda r: r["num_preemptions"],
    "prompt tokens from cache": lambda r: f"{r['prefix_cache_hits'] / r['prompt_tokens']:.0%}",
    "wrong": lambda r: r["wrong"],
    "left over": lambda r: sum(r["left"].values()),
    "MiB after half → end": lambda r: f"{r['settled_mib']:.0f} → {r['end_mib']:.0f}",
    "CPU s (wall)": lambda r: f"{r['cpu_s']:.0f} ({r['wall_s']:.0f})",
    "passed": lambda r: "yes" if r["passed"] else "NO",
}
HEAD = "# Soak\n\nWritten by `python benchmarks/soak.py`, which says what is compared.\n\n"


def render(reports: Sequence[Report]) -> str:
    """One line of the table for each report."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
    rows += [[str(value(report)) for value in COLUMNS.values()] for report in reports]
    return HEAD + "".join("| " + " | ".join(row) + " |\n" for row in rows)
