"""`rlvr-decode evaluate`, apart from its task, which `training.verbs.evaluate` resolves."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlvr_decode.evaluate import engines, run, settings
from rlvr_decode.evaluate.report import Evaluation, charts, markdown, suggestion
from rlvr_decode.evaluate.run import Asked, evaluate
from rlvr_decode.evaluate.summary import gain
from rlvr_decode.pair import Pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything but the task."""
    parser.add_argument("pair", help="a name, a directory, or a pair.json")
    parser.add_argument("-o", "--out", default="evaluation", help="where results go, and go on")
    parser.add_argument(
        "--write", action="store_true", help="make the suggestion the pair's defaults, if it holds"
    )
    for group in (settings, run, engines):
        group.add_arguments(parser)


def command(args: argparse.Namespace, asked: Asked) -> None:
    """Evaluate, print the suggestion, leave the report in `args.out`.

    Raises ValueError for what cannot be measured.
    """
    for name in ("samples", "max_tokens", "batch", "concurrency"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1")
    pair = Pair.open(args.pair)
    evaluation = evaluate(args, pair, asked)
    for file in write_report(evaluation, Path(args.out)):
        print(file)
    print(f"suggested: {suggestion(evaluation.choice)}")
    held = _held(evaluation)
    if held is not None:
        print(held)
    if args.write:
        _write(pair, evaluation)


def write_report(evaluation: Evaluation, out: Path) -> list[Path]:
    """report.md and, where there is something to draw, strength.png."""
    report = out / "report.md"
    report.write_text(markdown(evaluation), encoding="utf-8")
    drawn = charts(evaluation)
    if not drawn:
        return [report]
    from rlvr_decode.charts.png import save

    save(drawn, out / "strength.png")
    return [report, out / "strength.png"]


def _held(evaluation: Evaluation) -> str | None:
    """How the suggestion did on fresh prompts, in a sentence."""
    if not evaluation.confirmed:
        return None
    chosen = evaluation.choice.arm
    over = gain(
        evaluation.confirmed[chosen], evaluation.confirmed[chosen.rlvr], evaluation.interval
    )
    verdict = "holds" if over.low > 0 else "does not hold"
    return (
        f"on {over.prompts} fresh prompts it {verdict}: {100 * over.mean:+.1f} points over rlvr, "
        f"95 % from {100 * over.low:+.1f} to {100 * over.high:+.1f}"
    )


def _write(pair: Pair, evaluation: Evaluation) -> None:
    choice = evaluation.choice
    if not choice.is_rlvr:
        if not evaluation.confirmed:
            raise ValueError("--write: needs fresh prompts to confirm the suggestion on; --confirm")
        found = evaluation.confirmed
        if gain(found[choice.arm], found[choice.arm.rlvr], evaluation.interval).low <= 0:
            print(f"{pair.name}: defaults left as they are: {pair.defaults}")
            return
    settings.write_defaults(pair, choice.arm.extrapolation)
    print(f"{pair.name}: defaults are now {choice.arm.extrapolation}")
