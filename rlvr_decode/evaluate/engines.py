"""Which engine answers, and with which checkpoints."""

from __future__ import annotations

import argparse
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlvr_decode.evaluate.arms import PAIR, Arm
from rlvr_decode.evaluate.sampling import Sampler
from rlvr_decode.pair import Pair

ENGINES = ("auto", "transformers", "vllm")
# Below this, an engine takes longer to start than the answers take without one.
SMALL_BYTES = 100 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Who answers."""
    add = parser.add_argument_group("engine").add_argument
    add("--engine", choices=ENGINES, default="auto", help="in this process (default: by size)")
    add("--engine-arg", action="append", default=[], metavar="KEY=VALUE",
        help="of vLLM's engine, as TOML, such as tensor_parallel_size=4")  # fmt: skip
    add("--batch", type=int, default=1024, help="responses at a time (default: 1024)")
    add("--endpoint", metavar="URL", help="ask a running server, such as http://host:8000/v1")
    add("--model", help="the pair's name at the endpoint (default: its own)")
    add("--by-name", action="store_true", help="say the strength as NAME@strength only")
    add("--concurrency", type=int, default=32, help="requests under way at the endpoint")


def engine_of(args: argparse.Namespace, pair: Pair) -> str:
    """The name of the engine that the arguments choose."""
    if args.endpoint:
        return "endpoint"
    if args.engine != "auto":
        return str(args.engine)
    files = pair.base.fetch().glob("*.safetensors")
    small = sum(file.stat().st_size for file in files) < SMALL_BYTES
    return "transformers" if small or find_spec("vllm") is None else "vllm"


class Engines:
    """Opens the sampler of an arm; the checkpoints of a variant are written once."""

    def __init__(self, args: argparse.Namespace, pair: Pair, scratch: Path) -> None:
        self._args, self._pair, self._scratch = args, pair, scratch
        self._variants: dict[tuple[str, float], Pair] = {(PAIR, 0.0): pair}

    def open(self, arm: Arm) -> Sampler:
        """Raises ValueError for an arm that the chosen engine cannot answer as."""
        args, engine = self._args, engine_of(self._args, self._pair)
        if engine == "endpoint":
            from rlvr_decode.evaluate.with_endpoint import EndpointSampler

            return EndpointSampler(
                args.endpoint,
                model=args.model or self._pair.name,
                by_name=args.by_name,
                concurrency=args.concurrency,
                max_tokens=args.max_tokens,
            )
        pair = self._variant(arm)
        if engine == "vllm":
            from rlvr_decode.evaluate.with_vllm import VllmSampler

            chosen = dict(map(_engine_arg, args.engine_arg))
            return VllmSampler(pair, max_tokens=args.max_tokens, **chosen)
        from rlvr_decode.evaluate.with_transformers import TransformersSampler, open_models

        return TransformersSampler(open_models(pair), max_tokens=args.max_tokens, batch=args.batch)

    def _variant(self, arm: Arm) -> Pair:
        from rlvr_decode.evaluate.variants import variant_of

        if arm.checkpoints not in self._variants:
            place = self._scratch / str(len(self._variants))
            self._variants[arm.checkpoints] = variant_of(self._pair, arm, place)
        return self._variants[arm.checkpoints]


def _engine_arg(item: str) -> tuple[str, Any]:
    key, equals, text = item.partition("=")
    if not (key and equals):
        raise ValueError(f"--engine-arg {item}: write it as key=value")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text


def check_arms(args: argparse.Namespace, pair: Pair, arms: list[Arm]) -> None:
    """Raise ValueError for the first arm that the chosen engine cannot answer as."""
    engine = engine_of(args, pair)
    for arm in arms:
        if engine == "endpoint" and arm.variant != PAIR:
            raise ValueError(
                f"{arm.label}: an endpoint serves the pair alone; leave --weights and --control "
                "out, or evaluate without --endpoint"
            )
        if engine == "vllm" and arm.variant == "vocabulary":
            raise ValueError(
                "--control vocabulary: vLLM combines the two models itself; use --control update "
                "or --engine transformers"
            )
        setting = arm.extrapolation
        other = setting.strength > 0 and setting.plausibility != pair.defaults.plausibility
        if args.by_name and (setting.gated or other or arm.min_p):
            raise ValueError(f"{arm.label}: NAME@strength says a strength only; drop --by-name")
