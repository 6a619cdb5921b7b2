"""`rlvr-decode generate PAIR PROMPT --strength 0 0.5 1`: the answers side by side, in one batch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rlvr_decode.options import RULE_OPTIONS, add_rule_options, given
from rlvr_decode.pair import Pair
from rlvr_decode.params import SAMPLING_SETTINGS, Extrapolation


def main(argv: Sequence[str]) -> int:
    """Print the answer at each strength."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        pair = Pair.open(args.pair)
        strengths = args.strength or [pair.defaults.strength]
        shared = given(args, *RULE_OPTIONS)
        settings = [
            Extrapolation.from_request({"strength": strength} | shared, pair.defaults)
            for strength in strengths
        ]
    except ValueError as error:
        parser.error(str(error))
    sampling = given(args, *SAMPLING_SETTINGS, "max_tokens", "seed")
    answers = generate(pair, args.prompt, settings, chat=args.chat, **sampling)
    for setting, answer in zip(settings, answers, strict=True):
        print(f"\n[{setting}]\n{answer}")
    return 0


def generate(
    pair: Pair, prompt: str, settings: Sequence[Extrapolation], *, chat: bool, **sampling: Any
) -> list[str]:
    """The answer to one prompt at each of the settings, from one batch of a vLLM engine.

    chat      put the prompt through the chat template, as one message of the user.
    sampling  further arguments of `vllm.SamplingParams`.
    """
    from vllm import LLM

    from rlvr_decode.engine.launch import engine_args

    llm = LLM(**engine_args(pair, enforce_eager=True, disable_log_stats=True))
    params = [setting.sampling_params(**sampling) for setting in settings]
    if chat:
        message = [{"role": "user", "content": prompt}]
        outputs = llm.chat([message] * len(params), params, use_tqdm=False)  # type: ignore[arg-type]
    else:
        outputs = llm.generate([prompt] * len(params), params, use_tqdm=False)
    return [output.outputs[0].text for output in outputs]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rlvr-decode generate", description=__doc__)
    parser.add_argument("pair", help="a name, a directory, or a pair.json")
    parser.add_argument("prompt")
    parser.add_argument(
        "--strength", type=float, nargs="+", help="-1 is base, 0 is rlvr (default: the pair's)"
    )
    add_rule_options(parser, otherwise="the pair's")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--min-p", type=float)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--chat", action="store_true", help="use the chat template")
    return parser
