"""The report of `smollm2.py`: Markdown, a chart, and the figures as lines of JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlvr_decode.charts import Chart, Series
from rlvr_decode.charts.png import save
from rlvr_decode.evaluate.arms import PAIR, Arm
from rlvr_decode.evaluate.report import table
from rlvr_decode.evaluate.statistics import Interval, bootstrap_interval, paired_difference
from rlvr_decode.evaluate.summary import Summary, gain
from rlvr_decode.params import Extrapolation

Found = Mapping[Arm, Summary]
BASE, RLVR = Arm(extrapolation=Extrapolation(strength=-1.0)), Arm()

ABOUT = """\
`benchmarks/smollm2.py`: held-out prompts, each asked once, {samples} samples a prompt (one if
greedy), at most {tokens} tokens, by vLLM in bfloat16 on a CPU. Intervals are 95 %, by bootstrap
over prompts; every difference is paired by prompt, in points. "{primary}" at T=1 was fixed as the
comparison before anything was measured; every other row is a look, and the best of many looks
flatters itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """Everything that was measured.

    sweep      of the pair `swept` on its own task; `room` with more tokens.
    adapters   by pair, rlvr alone on the same prompts.
    elsewhere  by other task and pair.
    texts      by text and model, mean −log p of each window, in nats.
    recipes    by pair, its provenance.
    """

    swept: str
    sweep: Found
    room: Found
    adapters: Mapping[str, Found]
    elsewhere: Mapping[tuple[str, str], Found]
    texts: Mapping[str, Mapping[str, list[float]]]
    recipes: Mapping[str, Mapping[str, Any]]
    primary: Arm
    samples: int
    tokens: int


def write_report(place: Path, findings: Findings) -> None:
    """`place` with .md, .png and .jsonl."""
    place.with_suffix(".md").write_text(markdown(findings), encoding="utf-8")
    lines = [json.dumps(line) for line in figures(findings)]
    place.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    save(charts(findings), place.with_suffix(".png"))


def markdown(findings: Findings) -> str:
    """The report."""
    rlvr = findings.sweep[RLVR]
    about = ABOUT.format(
        samples=findings.samples, tokens=findings.tokens, primary=findings.primary.label
    )
    parts = [
        f"# {findings.swept}: base, rlvr, and beyond",
        about,
        f"## The task, {rlvr.accuracy.prompts} prompts",
        _sweep(findings.sweep),
        f"{_verdict(findings)}\n\n{_room(findings)}",
        "## Adapters and objectives, the same prompts",
        _adapters(findings),
        "## Elsewhere",
        _elsewhere(findings),
    ]
    if findings.texts:
        parts += ["## Text", _texts(findings)]
    return "\n\n".join(parts) + "\n"


def _verdict(findings: Findings) -> str:
    sweep, primary = findings.sweep, findings.primary
    return (
        f"rlvr − base at T=1: {points(gain(sweep[RLVR], sweep[BASE], bootstrap_interval))} points. "
        f"{primary.label} − rlvr at T=1: "
        f"{points(gain(sweep[primary], sweep[RLVR], bootstrap_interval))} points; "
        f"− rlvr with min-p alone: "
        f"{points(gain(sweep[primary], sweep[primary.masked_rlvr], bootstrap_interval))}."
    )


def _room(findings: Findings) -> str:
    room = findings.room
    return (
        f"With up to 64 tokens instead: base {percent(room[BASE].accuracy)} %, "
        f"rlvr {percent(room[RLVR].accuracy)} %, rlvr − base "
        f"{points(gain(room[RLVR], room[BASE], bootstrap_interval))} points."
    )


def _sweep(sweep: Found) -> str:
    head = ["arm", "drawn", "accuracy, %", "over rlvr at T=1", "over rlvr drawn alike"]
    head += ["tokens", "ended", "entropy", "intervention"]
    rows = []
    for arm, summary in sweep.items():
        alike = Arm(temperature=arm.temperature)
        over = [
            "–" if arm == other else points(gain(summary, sweep[other], bootstrap_interval))
            for other in (RLVR, alike)
        ]
        rows.append(
            [
                arm.label,
                arm.drawing,
                percent(summary.accuracy),
                *over,
                f"{summary.length:.1f}",
                f"{100 * summary.finished:.0f} %",
                "–" if summary.entropy is None else f"{summary.entropy:.3f}",
                "–" if summary.rate is None else f"{100 * summary.rate:.1f} %",
            ]
        )
    return table(head, rows)


def _adapters(findings: Findings) -> str:
    greedy = Arm(temperature=0.0)
    swept = {arm: findings.sweep[arm] for arm in (RLVR, greedy)}
    head = ["pair", "objective", "seed", "steps"]
    head += ["T=1, %", f"− {findings.swept}", "greedy, %", f"− {findings.swept}"]
    rows = []
    for name, found in {findings.swept: swept, **findings.adapters}.items():
        made = findings.recipes[name]
        row = [name, *(str(made.get(key)) for key in ("objective", "seed", "steps"))]
        for arm in (RLVR, greedy):
            same = found is swept
            row.append(percent(found[arm].accuracy))
            row.append("–" if same else points(gain(found[arm], swept[arm], bootstrap_interval)))
        rows.append(row)
    return table(head, rows)


def _elsewhere(findings: Findings) -> str:
    tasks = list(dict.fromkeys(task for task, _ in findings.elsewhere))
    rows = []
    base = {task: findings.elsewhere[task, findings.swept][BASE] for task in tasks}
    rows.append(["base", *(percent(base[task].accuracy) for task in tasks)])
    for name in dict.fromkeys(name for _, name in findings.elsewhere):
        for arm in findings.elsewhere[tasks[0], name]:
            if arm == BASE:
                continue
            cells = []
            for task in tasks:
                summary = findings.elsewhere[task, name][arm]
                over = points(gain(summary, base[task], bootstrap_interval))
                cells.append(f"{percent(summary.accuracy)}; {over}")
            rows.append([f"{name}, {arm.label}", *cells])
    prompts = base[tasks[0]].accuracy.prompts
    head = ["model, T=1", *(f"{task}, % and points over base" for task in tasks)]
    return f"{prompts} prompts of each, at most 32 tokens.\n\n{table(head, rows)}"


def _texts(findings: Findings) -> str:
    head = ["model", *(f"{text}: perplexity; × base" for text in findings.texts)]
    rows = []
    for model in next(iter(findings.texts.values())):
        row = [model]
        for losses in findings.texts.values():
            perplexity = math.exp(statistics.fmean(losses[model]))
            if model == "base":
                row.append(f"{perplexity:.2f}")
                continue
            over = paired_difference(losses[model], losses["base"])
            low, mean, high = (math.exp(each) for each in (over.low, over.mean, over.high))
            row.append(f"{perplexity:.2f}; {mean:.3f} [{low:.3f}, {high:.3f}]")
        rows.append(row)
    windows = {name: len(losses["base"]) for name, losses in findings.texts.items()}
    counted = ", ".join(f"{name} {count}" for name, count in windows.items())
    return (
        "Windows of 256 tokens, float32, intervals (t) over windows: "
        f"{counted}.\n\n{table(head, rows)}"
    )


def figures(findings: Findings) -> list[dict[str, Any]]:
    """One line for each arm of each measurement."""
    measured: dict[str, Found] = {"sweep": findings.sweep, "room": findings.room}
    measured |= {f"adapters/{name}": found for name, found in findings.adapters.items()}
    measured |= {f"{task}/{name}": found for (task, name), found in findings.elsewhere.items()}
    lines: list[dict[str, Any]] = [
        {"measured": where, "arm": asdict(arm)} | _numbers(found, arm)
        for where, found in measured.items()
        for arm in found
    ]
    return [*lines, {"texts": findings.texts}]


def _numbers(found: Found, arm: Arm) -> dict[str, Any]:
    summary = found[arm]
    over = gain(summary, found[RLVR], bootstrap_interval)
    return {
        "accuracy": asdict(summary.accuracy),
        "over_rlvr": asdict(over),
        "length": summary.length,
        "finished": summary.finished,
        "entropy": summary.entropy,
        "rate": summary.rate,
    }


def charts(findings: Findings) -> list[Chart]:
    """Accuracy against strength, with and without plausibility, and of drawing more coldly."""
    plain, masked, cold = [], [], []
    for arm, summary in findings.sweep.items():
        setting = arm.extrapolation
        if arm.variant != PAIR or arm.min_p or setting.gated:
            continue
        if setting == Extrapolation():
            cold.append((arm.temperature, summary.accuracy))
        if arm.temperature == 1 and (not setting.plausibility or setting.strength <= 0):
            plain.append((setting.strength, summary.accuracy))
        if arm.temperature == 1 and (setting.plausibility or setting.strength <= 0):
            masked.append((setting.strength, summary.accuracy))
    level = f"plausibility {findings.primary.extrapolation.plausibility:g}"
    return [
        Chart(
            title="Accuracy against strength, T=1",
            x_label="strength (−1 base, 0 rlvr)",
            y_label="accuracy",
            series=[_line("no plausibility", plain), _line(level, masked)],
        ),
        Chart(
            title="Accuracy of plain rlvr against temperature",
            x_label="temperature",
            y_label="accuracy",
            series=[_line("rlvr", cold)],
        ),
    ]


def _line(name: str, points: list[tuple[float, Interval]]) -> Series:
    points = sorted(points, key=lambda point: point[0])
    return Series(
        name=name,
        x=[x for x, _ in points],
        y=[interval.mean for _, interval in points],
        low=[interval.low for _, interval in points],
        high=[interval.high for _, interval in points],
    )


def percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def points(interval: Interval) -> str:
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.mean:+.1f} [{low:+.1f}, {high:+.1f}]"
