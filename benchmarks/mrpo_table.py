"""The tables of `mrpo.py`: arms beside each other, and paired with GRPO."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rlvr_decode.training.evaluation.boundary import pass_at_k

Line = dict[str, Any]
KS = (1, 16)
NAMES = {
    "grpo": "GRPO",
    "mrpo": "MRPO, no cold start",
    "cold_grpo": "SOE + SFT, then GRPO",
    "cold_mrpo": "SOE + SFT, then MRPO: the recipe",
}


def markdown(lines: Sequence[Line]) -> str:
    """Everything that has been measured so far."""
    parts = [
        "# MRPO's recipe and GRPO at equal compute",
        "",
        "`benchmarks/mrpo.py`: 3-digit addition, from the base of the bundled pair. Budgets count "
        "token passes: a token generated or looked at 1, trained on 3, prompts included; SOE and "
        "SFT count. Mean ± standard deviation over seeds of exploration, data order, prompts and "
        "sampling (one base model). 256 held-out prompts × 16 samples at temperature 1; rank is "
        "the mean trajectory rank over windows of 16. CPU seconds, of a shared core, are the other "
        "way to be fair: SOE's many short continuations cost more of them per token than RL does.",
        "",
        *_starts(lines),
    ]
    for budget in sorted({line["budget"] for line in lines if "budget" in line}):
        parts += ["", f"## {budget / 1e6:g} million token passes", "", *_arms(lines, budget)]
    return "\n".join(parts) + "\n"


def _starts(lines: Sequence[Line]) -> list[str]:
    heads = [
        "| before reinforcement learning | pass@1 | pass@16 | rank | million passes | traces |"
    ]
    rows = [
        [line for line in lines if line.get("arm") == "base"],
        [x for x in lines if "cold" in x],
    ]
    table = [*heads, "|" + "---|" * 6]
    for name, mine in zip(("base", "SOE + SFT"), rows, strict=True):
        figures = [_spread(mine, key) for key in ("pass@1", "pass@16", "rank")]
        spent = _spread([x | {"passes": x.get("passes", 0) / 1e6} for x in mine], "passes")
        traces = ", ".join(str(x["traces"]) for x in mine if "traces" in x)
        table.append(f"| {name} | {' | '.join(figures)} | {spent} | {traces} |")
    return table


def _arms(lines: Sequence[Line], budget: int) -> list[str]:
    table = [
        "| arm | seeds | RL steps | CPU s | pass@1 | pass@16 | rank | length "
        "| pass@1 − GRPO, paired | pass@16 − GRPO, paired |",
        "|" + "---|" * 10,
    ]
    at_budget = [line for line in lines if line.get("budget") == budget]
    reference = {line["seed"]: line for line in at_budget if line["arm"] == "grpo"}
    for arm, name in NAMES.items():
        mine = [line for line in at_budget if line["arm"] == arm]
        if not mine:
            continue
        steps = ", ".join(str(line["rl_steps"]) for line in mine)
        seconds = statistics.fmean(line["seconds"] for line in mine)
        figures = [_spread(mine, key) for key in ("pass@1", "pass@16", "rank", "length")]
        pairs = [(line, reference[line["seed"]]) for line in mine if line["seed"] in reference]
        gaps = ["–"] * 2 if arm == "grpo" else [_gap(pairs, k) for k in KS]
        table.append(
            f"| {name} | {len(mine)} | {steps} | {seconds:.0f} | {' | '.join(figures + gaps)} |"
        )
    return table


def _gap(pairs: Sequence[tuple[Line, Line]], k: int) -> str:
    """Mean difference in points, with a 95 % interval over seeds (Student's t)."""
    gaps = [100 * (_pass(ours, k) - _pass(theirs, k)) for ours, theirs in pairs]
    if len(gaps) < 2:
        return ", ".join(f"{gap:+.1f}" for gap in gaps)
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}[len(gaps)]
    half = quantile * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return f"{statistics.fmean(gaps):+.1f} ± {half:.1f}"


def _pass(line: Line, k: int) -> float:
    return statistics.fmean(pass_at_k(16, count, k) for count in line["counts"])


def _spread(lines: Sequence[Line], key: str) -> str:
    values = [line[key] for line in lines]
    digits = 3 if key.startswith("pass@") else 2
    mean = f"{statistics.fmean(values):.{digits}f}" if values else "–"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
