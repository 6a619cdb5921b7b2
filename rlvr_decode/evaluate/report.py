"""What an evaluation says, as Markdown and as charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlvr_decode.charts import Chart, Series
from rlvr_decode.evaluate.arms import CONTROLS, PAIR, Arm
from rlvr_decode.evaluate.statistics import Interval
from rlvr_decode.evaluate.summary import Choice, Summary, gain

HOW_TO_READ = """\
Avg is the mean reward over prompts, each the mean of its samples; intervals are 95 % and over
prompts; a gain is paired by prompt, in points over plain rlvr drawn the same way. Pass@k is
unbiased. Intervention is how often the gate throws a token away. Arms of the comparison share their
prompts, so the best of them flatters itself: the confirmation asks fresh ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Everything that was measured.

    compared   arms on the shared prompts: the grid, then the rivals and the control.
    confirmed  the chosen arm and its rivals on fresh prompts; empty if there was nothing to choose.
    """

    title: str
    about: str
    compared: dict[Arm, Summary]
    choice: Choice
    confirmed: dict[Arm, Summary]
    samples: int
    interval: Callable[..., Interval]


def markdown(evaluation: Evaluation) -> str:
    """The report."""
    sections = [
        f"# {evaluation.title}\n\n{evaluation.about}\n\n{HOW_TO_READ}",
        f"## Suggestion\n\n{suggestion(evaluation.choice)}",
    ]
    if evaluation.confirmed:
        sections.append(_confirmation(evaluation))
    drawings: dict[str, list[Arm]] = {}
    for arm in evaluation.compared:
        drawings.setdefault(arm.drawing, []).append(arm)
    prompts = next(iter(evaluation.compared.values())).accuracy.prompts
    for drawing, arms in drawings.items():
        if len(arms) > 1:
            heading = f"## Comparison, {drawing}, {prompts} prompts"
            sections.append(f"{heading}\n\n{_table(arms, evaluation)}")
    if alone := [arms[0] for arms in drawings.values() if len(arms) == 1]:
        heading = f"## Drawn otherwise, {prompts} prompts"
        sections.append(f"{heading}\n\n{_table(alone, evaluation, drawn=True)}")
    return "\n\n".join(sections) + "\n"


def suggestion(choice: Choice) -> str:
    """One sentence for people."""
    if choice.gain is None:
        return "strength 0, plain rlvr: no setting is better than it with confidence."
    return (
        f"{choice.arm.extrapolation} ({_points(choice.gain)} points over rlvr at "
        f"{choice.arm.drawing}, on the prompts it was chosen on)."
    )


def _confirmation(evaluation: Evaluation) -> str:
    found, chosen = evaluation.confirmed, evaluation.choice.arm
    rows = [
        [
            f"{arm.label}, {arm.drawing}",
            _percent(summary.accuracy),
            "–" if arm == chosen else _points(gain(found[chosen], summary, evaluation.interval)),
        ]
        for arm, summary in found.items()
    ]
    prompts = found[chosen].accuracy.prompts
    return (
        f"## Confirmation on {prompts} fresh prompts\n\n"
        "The suggested setting against each other arm, paired.\n\n"
        + table(["arm", f"Avg@{evaluation.samples} %", "suggested − this arm, points"], rows)
        + _control(evaluation)
    )


def _control(evaluation: Evaluation) -> str:
    """What the control gains over the cut that it has in common with the suggested arm."""
    found, plain = evaluation.confirmed, evaluation.choice.arm.masked_rlvr
    return "".join(
        f"\n\nControl: a push of the same size {arm.label.rpartition(', ')[2]} gains "
        f"{_points(gain(summary, found[plain], evaluation.interval))} points over {plain.label}."
        for arm, summary in found.items()
        if arm.variant in CONTROLS
    )


def _table(arms: Sequence[Arm], evaluation: Evaluation, *, drawn: bool = False) -> str:
    found = evaluation.compared
    ks = sorted({k for arm in arms for k in found[arm].pass_at})
    traits = list(found[arms[0]].traits)
    head = ["arm", f"Avg@{evaluation.samples} %", "gain over rlvr", *(f"Pass@{k} %" for k in ks)]
    head += ["tokens", "ended", "entropy", "intervention", *traits]
    rows = []
    for arm in arms:
        summary = found[arm]
        over = "–"
        if arm != arm.rlvr and arm.rlvr in found:
            over = _points(gain(summary, found[arm.rlvr], evaluation.interval))
        rows.append(
            [
                f"{arm.label}, {arm.drawing}" if drawn else arm.label,
                _percent(summary.accuracy),
                over,
                *(f"{100 * summary.pass_at[k]:.1f}" if k in summary.pass_at else "–" for k in ks),
                f"{summary.length:.1f}",
                f"{100 * summary.finished:.0f} %",
                "–" if summary.entropy is None else f"{summary.entropy:.3f}",
                "–" if summary.rate is None else f"{100 * summary.rate:.1f} %",
                *(f"{summary.traits[name]:.3f}" for name in traits),
            ]
        )
    return table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def charts(evaluation: Evaluation) -> list[Chart]:
    """Against strength, for each way of drawing: accuracy, tokens, entropy and the task's traits.

    A gate is a line of its own; without two strengths of one line there is nothing to draw.
    """
    lines = _lines(evaluation.compared)
    if not lines:
        return []
    traits = list(next(iter(evaluation.compared.values())).traits)
    values: list[tuple[str, Callable[[Summary], float | None]]] = [
        ("tokens of a response", lambda summary: summary.length),
        ("entropy, nats a token", lambda summary: summary.entropy),
        *((f"share: {name}", lambda summary, name=name: summary.traits[name]) for name in traits),
    ]
    drawn = [_chart("accuracy", lines, lambda s: s.accuracy.mean, lambda s: s.accuracy)]
    for label, value in values:
        if all(value(summary) is not None for line in lines.values() for summary in line):
            drawn.append(_chart(label, lines, value, None))
    return drawn


def _lines(found: dict[Arm, Summary]) -> dict[str, list[Summary]]:
    """Summaries by drawing and gate, ascending in strength; rlvr and base are on every ungated."""
    groups: dict[str, dict[float, Summary]] = {}
    for arm, summary in found.items():
        if arm.variant != PAIR or arm.min_p:
            continue
        setting = arm.extrapolation
        name = f"{arm.drawing}"
        if setting.gated:
            name += f", {arm.label.partition('gate ')[2]}"
        elif setting.plausibility:
            name += f", pl. {setting.plausibility:g}"
        groups.setdefault(name, {})[setting.strength] = summary
    for name, line in groups.items():
        plain = groups.get(name.partition(", pl. ")[0], {})
        if ", pl. " in name:
            line |= {strength: plain[strength] for strength in plain if strength <= 0}
    return {
        name: [line[strength] for strength in sorted(line)]
        for name, line in groups.items()
        if len(line) > 1
    }


def _chart(
    label: str,
    lines: dict[str, list[Summary]],
    value: Callable[[Summary], float | None],
    interval: Callable[[Summary], Interval] | None,
) -> Chart:
    series = []
    for name, line in lines.items():
        bands = [interval(summary) for summary in line] if interval else []
        series.append(
            Series(
                name=name,
                x=[summary.arm.extrapolation.strength for summary in line],
                y=[value(summary) or 0.0 for summary in line],
                low=[band.low for band in bands],
                high=[band.high for band in bands],
            )
        )
    return Chart(
        title=f"{label[0].upper()}{label[1:]} against strength",
        x_label="strength (−1 base, 0 rlvr)",
        y_label=label,
        series=series,
    )


def _percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _points(interval: Interval) -> str:
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.mean:+.1f} [{low:+.1f}, {high:+.1f}]"
