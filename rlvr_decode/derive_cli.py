"""`rlvr-decode pair merge|extrapolate`: pairs made of pairs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from rlvr_decode.pair import FILE, Pair

if TYPE_CHECKING:
    from rlvr_decode.weight_extrapolation import Stored

DTYPES = ("float32", "bfloat16", "float16")


def merge(args: argparse.Namespace) -> None:
    """Turn an adapter pair into one of full weights."""
    import torch

    from rlvr_decode.weight_extrapolation import merge

    dtype = getattr(torch, args.dtype)
    _tell(merge(Pair.open(args.pair), args.output, name=args.name, dtype=dtype), args.output)


def extrapolate(args: argparse.Namespace) -> None:
    """Go beyond rlvr in the weights: θ_rlvr + strength · (θ_rlvr − θ_base) as the new rlvr."""
    import torch

    from rlvr_decode.weight_extrapolation import extrapolate

    dtype = getattr(torch, args.dtype) if args.dtype else None
    made = extrapolate(
        Pair.open(args.pair), args.output, strength=args.strength, name=args.name, dtype=dtype
    )
    _tell(made, args.output)


def announce(pair: Pair, folder: str) -> None:
    """Say where a pair has been written and what to do with it."""
    print(f"{pair.directory / FILE}\nserve it: rlvr-decode serve {folder}")
    places = [place.directory for place in (pair.base, pair.rlvr) if place.directory]
    if not all(place.is_relative_to(pair.directory) for place in places):
        print("it names directories of this machine, so it cannot be copied to another")


def add_parsers(verbs: Any) -> None:
    """Add the arguments of every verb here to the sub-parsers of `rlvr-decode pair`."""
    merging = verbs.add_parser("merge", help=merge.__doc__)
    extrapolating = verbs.add_parser("extrapolate", help=extrapolate.__doc__)
    for each in (merging, extrapolating):
        each.add_argument("pair", help="a name, a directory, or a pair.json")
        each.add_argument("-o", "--output", required=True, help="the new pair's directory")
        each.add_argument("--name", help="the new pair's name (default: the directory's)")
    merging.add_argument("--dtype", choices=DTYPES, default="float32", help="to store in")
    extrapolating.add_argument(
        "--strength", type=float, required=True, help="-1 is base, 0 is rlvr, above goes beyond"
    )
    extrapolating.add_argument("--dtype", choices=DTYPES, help="to store in (default: rlvr's own)")


def _tell(made: Stored, folder: str) -> None:
    print(
        f"storing took {made.lost:.2%} of the update; "
        f"bfloat16 would take {made.lost_in_bfloat16:.2%}"
    )
    announce(made.pair, folder)


VERBS = {"merge": merge, "extrapolate": extrapolate}
