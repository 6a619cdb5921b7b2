"""A request's settings as options of a command; those not given are left to what they stand on."""

from __future__ import annotations

import argparse
from typing import Any

from rlvr_decode.params import GATES, PRIMARIES

RULE_OPTIONS = ("plausibility", "gate", "threshold", "primary")


def add_rule_options(parser: argparse.ArgumentParser, *, otherwise: str) -> None:
    """Add --plausibility, --gate, --threshold, --primary; `otherwise` says what unset ones mean."""
    parser.add_argument(
        "--plausibility", type=float, help=f"share of the likeliest token's (default: {otherwise})"
    )
    parser.add_argument(
        "--gate", choices=GATES, help=f"where to extrapolate (default: {otherwise})"
    )
    parser.add_argument("--threshold", type=float, help="of the gate")
    parser.add_argument(
        "--primary", choices=PRIMARIES, help="whom the gate has the first draw from"
    )


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options among `names` that were given, by name."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}
