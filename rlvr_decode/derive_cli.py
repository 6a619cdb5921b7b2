"""`rlvr-decode pair extract|merge|extrapolate`: pairs made of pairs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlvr_decode.pair import FILE, Pair

if TYPE_CHECKING:
    from rlvr_decode.weight_extrapolation import Stored

DTYPES = ("float32", "bfloat16", "float16")


def extract(args: argparse.Namespace) -> None:
    """Turn a pair of full weights into base and a low-rank adapter, and measure what that loses."""
    from rlvr_decode.deltas import Criterion
    from rlvr_decode.derive import check_new
    from rlvr_decode.extract import extract, markdown, write
    from rlvr_decode.fidelity import make_probe
    from rlvr_decode.matrices import count_parameters
    from rlvr_decode.prompts import read_prompts

    check_new(Path(args.output))
    pair = Pair.open(args.pair)
    chosen = args.noise_floor or args.rank is not None or args.energy is not None
    criterion = (
        Criterion(rank=args.rank, energy=args.energy, noise_floor=args.noise_floor)
        if chosen
        else None
    )
    probe = make_probe(
        pair,
        read_prompts(args.prompts, pair, chat=args.chat) if args.prompts else (),
        samples=args.samples,
        max_tokens=args.max_tokens,
        seed=args.seed,
        device=args.device,
    )
    extraction = extract(
        pair,
        probe,
        criterion=criterion,
        min_correlation=args.min_correlation,
        max_rank=args.max_rank,
        max_rest=args.max_rest,
        seed=args.seed,
        device=args.device,
    )
    print(markdown(extraction.table, count_parameters(pair.base.fetch())))
    name, moved = extraction.deltas.worst_rest
    print(f"on {extraction.tokens} tokens; left as in base, most moved: {name} by {moved:.2g}")
    made = write(extraction, args.output, min_correlation=args.min_correlation, name=args.name)
    announce(made, args.output)


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
    extracting = verbs.add_parser("extract", help=extract.__doc__)
    _add_extraction(extracting)
    for each in (extracting, merging, extrapolating):
        each.add_argument("pair", help="a name, a directory, or a pair.json")
        each.add_argument("-o", "--output", required=True, help="the new pair's directory")
        each.add_argument("--name", help="the new pair's name (default: the directory's)")
    merging.add_argument("--dtype", choices=DTYPES, default="float32", help="to store in")
    extrapolating.add_argument(
        "--strength", type=float, required=True, help="-1 is base, 0 is rlvr, above goes beyond"
    )
    extrapolating.add_argument("--dtype", choices=DTYPES, help="to store in (default: rlvr's own)")


def _add_extraction(parser: argparse.ArgumentParser) -> None:
    kept = parser.add_argument_group(
        "rank", "unless given: the smallest power of two that correlates well enough"
    ).add_mutually_exclusive_group()
    kept.add_argument("--rank", type=int, help="of every matrix")
    kept.add_argument("--energy", type=float, help="share of each matrix's ‖ΔW‖² to hold, to 1")
    kept.add_argument(
        "--noise-floor", action="store_true", help="what stands out of rlvr's storage rounding"
    )
    parser.add_argument(
        "--max-rank",
        type=int,
        default=128,
        help="where energy, the noise floor and the search give up (default 128)",
    )
    parser.add_argument(
        "--min-correlation",
        type=float,
        default=0.95,
        help="of Δ with rlvr's own; below it nothing is written (default 0.95)",
    )
    parser.add_argument(
        "--max-rest",
        type=float,
        default=0.01,
        help="how far norms, biases, embeddings and head may have moved, as a share of their "
        "norm (default 0.01)",
    )
    parser.add_argument("--prompts", metavar="FILE", help="a prompt a line, or .jsonl")
    parser.add_argument("--chat", action="store_true", help="put them through the chat template")
    parser.add_argument("--samples", type=int, default=64, help="texts that rlvr writes")
    parser.add_argument("--max-tokens", type=int, default=64, help="of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="to compute on, e.g. cuda")


def _tell(made: Stored, folder: str) -> None:
    print(
        f"storing took {made.lost:.2%} of the update; "
        f"bfloat16 would take {made.lost_in_bfloat16:.2%}"
    )
    announce(made.pair, folder)


VERBS = {"extract": extract, "merge": merge, "extrapolate": extrapolate}
