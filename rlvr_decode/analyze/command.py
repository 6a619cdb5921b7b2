"""`rlvr-decode analyze`, apart from its task, which `training.verbs.analyze` resolves."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlvr_decode.analyze.page import page
from rlvr_decode.analyze.replacement import CRITERIA, SHARES
from rlvr_decode.analyze.run import Analysis, analyze
from rlvr_decode.charts.png import save
from rlvr_decode.evaluate.run import Asked
from rlvr_decode.pair import Pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything but the task."""
    add = parser.add_argument
    add("pair", help="a name, a directory, or a pair.json")
    add("-o", "--out", default="analysis", help="where the report goes (default: analysis)")
    add("--prompts", type=int, help="default: 200, or all of a file")
    add("--samples", type=int, default=2, help="responses a prompt in the sweep (default: 2)")
    add("--temperature", type=float, default=1.0)
    add("--max-tokens", type=int, default=128, help="of a response (default: 128)")
    add("--criterion", nargs="*", default=list(CRITERIA), metavar="NAME",
        help=f"of replacement, of {', '.join(CRITERIA)}")  # fmt: skip
    add("--share", type=float, nargs="+", default=list(SHARES), help="of base's tokens to replace")
    add("--geometry", action="store_true", help="also look at the update's matrices")
    add("--top", type=int, default=20, help="tokens to list (default: 20)")
    add("--shown", type=int, default=4, help="prompts whose responses are shown (default: 4)")
    add("--batch", type=int, default=1024, help="responses at a time (default: 1024)")
    add("--seed", type=int, default=0)


def command(args: argparse.Namespace, asked: Asked) -> None:
    """Analyse, and leave analysis.json, .png and .html in `args.out`.

    Raises ValueError for what cannot be measured.
    """
    for name in ("samples", "max_tokens", "batch"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1")
    if args.temperature <= 0:
        raise ValueError(f"--temperature {args.temperature:g}: must be above 0; tokens are sampled")
    analysis = analyze(args, Pair.open(args.pair), asked)
    for file in write(analysis, Path(args.out)):
        print(file)


def write(analysis: Analysis, out: Path) -> list[Path]:
    """The findings as JSON, the charts as PNG, and both as one page."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"analysis.{kind}" for kind in ("json", "png", "html")]
    text = json.dumps(values(analysis), indent=1, ensure_ascii=False, allow_nan=False)
    files[0].write_text(text + "\n", encoding="utf-8")
    save(list(filter(None, [*analysis.histogram_charts, analysis.replacement_chart])), files[1])
    files[2].write_text(page(analysis), encoding="utf-8")
    return files


def values(analysis: Analysis) -> dict[str, Any]:
    """The findings without their drawings."""
    found = asdict(analysis)
    for drawing in ("histogram_charts", "replacement_chart"):
        del found[drawing]
    return found
