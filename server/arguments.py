"""`rlvr-decode serve PAIR [any vLLM engine flag]`: vLLM's own parser, its defaults set by the pair.

What the user says wins, except for what would make the engine something else than this pair; that
is refused by name before anything is loaded.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

from rlvr_decode.engine.launch import engine_args
from rlvr_decode.pair import Pair
from rlvr_decode.server.limits import add_limits
from rlvr_decode.server.request import NAMED_STRENGTHS

HOST = "127.0.0.1"

REFUSED = {
    "trust_remote_code": "a pair never runs code from a checkpoint; leave it out",
    "hf_config_path": "both configs come from the pair; leave it out",
    "headless": "this server is the API server; leave it out",
    "grpc": "this server speaks HTTP; leave it out",
    "lora_modules": "an adapter on top would change rlvr but not base; make it a pair",
    "h11_max_incomplete_event_size": "not for the parser of this server; use --max-header-bytes",
    "h11_max_header_count": "not for the parser of this server; use --max-headers",
    "tokens_only": "this server speaks text; /inference/v1/generate takes token ids",
}
# `dummy` is for measuring speed without weights.
LOAD_FORMATS = ("safetensors", "fastsafetensors", "dummy")


class Parsed(NamedTuple):
    """What to serve: the pair, the names that stand for it, and vLLM's arguments."""

    pair: Pair
    names: tuple[str, ...]
    args: argparse.Namespace


def parse(argv: Sequence[str]) -> Parsed:
    """Read a command line; the pair is opened and checked. A wrong one ends the process."""
    parser = _parser()
    defaults = vars(parser.parse_args([]))
    if any(each.split("=")[0] in ("-h", "--help") for each in argv):
        parser.parse_args(list(argv))  # which ends the process, and says the real defaults
    # A default that nothing else is, so that what differs is what the user said. (Lists, because
    # a flag that may come several times appends to a copy of its default.)
    unset = {key: [] if isinstance(value, list) else object() for key, value in defaults.items()}
    parser.set_defaults(**unset)
    parsed = vars(parser.parse_args(list(argv)))
    said = {key: value for key, value in parsed.items() if value is not unset.get(key)}
    name, verify = said.pop("model_tag", None), said.pop("verify", False)
    if name is None:
        parser.error("which pair? `rlvr-decode serve tiny` serves the bundled one")
    try:
        pair = Pair.open(name, verify=verify)
        _refuse(said, pair)
        known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
        engine = engine_args(pair, **{key: said[key] for key in said.keys() & known})
    except ValueError as error:
        parser.error(str(error))
    names = said.get("served_model_name") or [pair.name]
    strengths = [f"{names[0]}@{suffix}" for suffix in NAMED_STRENGTHS]
    own = {"model_tag": None, "host": said.get("host", HOST)}
    own["served_model_name"] = [*names, *strengths]
    args = argparse.Namespace(**(defaults | said | engine | own))
    validate_parsed_serve_args(args)
    return Parsed(pair, tuple(names), args)


def _parser() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(  # type: ignore[no-untyped-call]
        prog="rlvr-decode serve",
        usage="rlvr-decode serve PAIR [--verify] [limits] [any vLLM engine flag]",
        description="Serve a pair behind the OpenAI API. PAIR (model_tag) is a name, a directory "
        "or a pair.json; every flag but --verify and those of --help=Limits is vLLM's own.",
    )
    parser.add_argument(  # type: ignore[no-untyped-call]
        "--verify", action="store_true", help="hash every file of the pair before serving it"
    )
    made: FlexibleArgumentParser = make_arg_parser(parser)
    add_limits(made)
    return made


def _refuse(said: Mapping[str, Any], pair: Pair) -> None:
    """Raise ValueError for flags under which this would not be the pair, or not be safe."""
    reasons = [f"--{_flag(key)}: {why}" for key, why in REFUSED.items() if said.get(key)]
    if said.get("api_server_count", 1) != 1:
        reasons.append("--api-server-count: this server is one process; leave it out")
    if said.get("load_format", "safetensors") not in LOAD_FORMATS:
        reasons.append(f"--load-format: must be one of {', '.join(LOAD_FORMATS)}")
    if "generation_config" in said and pair.generation_config == pair.directory:
        reasons.append(
            "--generation-config: only the pair's own stops for both models; sampling defaults "
            "are set by --override-generation-config"
        )
    if reasons:
        raise ValueError("; ".join(reasons))


def _flag(dest: str) -> str:
    return dest.replace("_", "-")
