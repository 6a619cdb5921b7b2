"""From the command line to the settings that are compared, and back into the pair's file."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from itertools import product
from typing import Any

from rlvr_decode.pair import Pair, locate
from rlvr_decode.params import GATES, PRIMARIES, THRESHOLD_RANGES, Extrapolation

# What `--suggest` searches where nothing is named: the papers' thresholds, and strengths up to
# where tokens that RL was not about begin to drift.
SEARCHED_STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
SEARCHED_THRESHOLDS = (-0.1, -0.3, -0.5)

_EXAMPLES = {
    "delta": "-0.3", "kl": "0.05", "reverse_kl": "0.05", "jsd": "0.02", "entropy": "0.5",
    "random": "0.1",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings of a request, each with any number of values."""
    add = parser.add_argument_group("settings, every combination of them").add_argument
    numbers: dict[str, Any] = {"type": float, "nargs": "+", "metavar": "NUMBER"}
    add("--strength", **numbers, help="-1 is base, 0 is rlvr; both are always asked")
    add("--plausibility", **numbers, help="default: the pair's")
    add("--gate", nargs="+", choices=GATES, metavar="GATE", help=f"of {', '.join(GATES)}")
    add("--threshold", **numbers, help="of the gates that compare with one")
    add("--primary", choices=PRIMARIES, help="the model a gate draws from first (default: rlvr)")
    add("--suggest", action="store_true", help="search a grid where no strength or gate is named")


def read_settings(args: argparse.Namespace, pair: Pair) -> list[Extrapolation]:
    """Every combination asked for; what is not named is the pair's default.

    Raises ValueError for a gate without its threshold and a threshold without a gate.
    """
    _check_gates(args)
    defaults = pair.defaults
    if args.suggest and not (args.strength or args.gate):
        return _searched(args.plausibility or [defaults.plausibility])
    if not (args.strength or args.gate or args.plausibility):
        return [defaults]
    made = []
    for strength, plausibility, gate in product(
        args.strength or [defaults.strength],
        args.plausibility or [defaults.plausibility],
        args.gate or ["none"],
    ):
        gated = {"primary": args.primary} if gate != "none" and args.primary else {}
        for threshold in args.threshold if gate in THRESHOLD_RANGES else [None]:
            made.append(
                Extrapolation(
                    strength=strength,
                    plausibility=plausibility,
                    gate=gate,
                    threshold=threshold,
                    **gated,
                )
            )
    return made


def write_defaults(pair: Pair, settings: Extrapolation) -> None:
    """Put settings into the pair's file, as what its requests get when they name none."""
    file = locate(pair.directory)
    values = json.loads(file.read_bytes())
    chosen = {name: value for name, value in asdict(settings).items() if value is not None}
    if not settings.gated:
        del chosen["primary"]
    unfinished = file.with_name(file.name + ".part")
    text = json.dumps({**values, "defaults": chosen}, indent=2, ensure_ascii=False)
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(file)


def _check_gates(args: argparse.Namespace) -> None:
    gates = args.gate or []
    comparing = [gate for gate in gates if gate in THRESHOLD_RANGES]
    if comparing and not args.threshold:
        example = _EXAMPLES[comparing[0]]
        raise ValueError(f"--gate {comparing[0]}: needs --threshold, such as {example}")
    if args.threshold and not comparing:
        known = ", ".join(THRESHOLD_RANGES)
        raise ValueError(f"--threshold {args.threshold[0]:g}: needs a --gate, one of {known}")
    if args.primary and not any(gate != "none" for gate in gates):
        raise ValueError(f"--primary {args.primary}: needs a --gate other than none")


def _searched(plausibilities: list[float]) -> list[Extrapolation]:
    ungated = [
        Extrapolation(strength=strength, plausibility=plausibility)
        for strength, plausibility in product(SEARCHED_STRENGTHS, plausibilities)
    ]
    gated = [
        Extrapolation(
            strength=strength,
            plausibility=plausibility,
            gate="delta",
            threshold=threshold,
            primary="base",
        )
        for strength, plausibility, threshold in product(
            SEARCHED_STRENGTHS, plausibilities, SEARCHED_THRESHOLDS
        )
    ]
    return ungated + gated
