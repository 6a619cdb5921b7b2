"""What one request may ask of the engine: checked before it enters, so that nothing ends it later.

Settings that are malformed are refused by `params` and `sampling`; here it is settings that vLLM
would apply beside ours, in a way that is not the distribution asked for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rlvr_decode.params import SAMPLING_SETTINGS, XARGS_PREFIX, Extrapolation, SettingError
from rlvr_decode.sampling import Sampling

if TYPE_CHECKING:
    from vllm import SamplingParams

# What vLLM does to the logits of a gated request, which are log q, must be nothing.
NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "thinking_token_budget": None,
}


# How many ids V2's tables have room for: vLLM looks when a request is in the worker, and ends it.
# Under V1 the same is refused, so that a request does not depend on the runner.
ROOM = {"allowed_token_ids": 1024, "logit_bias": 1024}
STOPS = 128
STOPS_OF_THE_PAIR = 16  # both models' ends of sequence are added later
BAD_WORDS_TOKENS = 1024


def refuse_inexact(params: SamplingParams) -> None:
    """Raise SettingError for settings that are malformed or could not be honoured."""
    _refuse_too_long(params)
    extrapolation = Extrapolation.from_extra_args(params.extra_args)
    Sampling.from_extra_args(params.extra_args)
    if extrapolation.uses_base and scores_prompt(params):
        name = "gate" if extrapolation.gated else "strength"
        raise SettingError(
            XARGS_PREFIX + name,
            getattr(extrapolation, name),
            "log-probs of the prompt are rlvr's alone; ask for them at strength 0 without a gate",
        )
    if extrapolation.gated:
        _refuse_beside_gate(params)
        return
    for name, value in _sampling_given(params.extra_args or {}):
        raise SettingError(name, value, "is for a request with a gate; use vLLM's own")


def _refuse_beside_gate(params: SamplingParams) -> None:
    for name, neutral in NEUTRAL.items():
        value = getattr(params, name, neutral)  # the last came with a later vLLM
        if name == "top_k" and value == -1:  # vLLM's other way to keep all
            continue
        if value != neutral:
            remedy = f"leave it at {neutral}"
            if name in SAMPLING_SETTINGS:
                remedy += f" and use {XARGS_PREFIX}{name}"
            raise SettingError(name, value, f"would act on top of the gate; {remedy}")
    if has_mask(params) and asks_logprobs(params):
        raise SettingError(
            "logprobs",
            params.logprobs,
            "would miss the mask of a gated request; leave out, or drop the gate or the mask "
            f"({', '.join(_masks(params))})",
        )


def _refuse_too_long(params: SamplingParams) -> None:
    for name, room in ROOM.items():
        if (given := len(getattr(params, name) or ())) > room:
            raise SettingError(name, given, f"must be at most {room} tokens")
    stops, most = len(params.all_stop_token_ids), STOPS - STOPS_OF_THE_PAIR
    if params.min_tokens > 0 and stops > most:
        reason = f"must be at most {most} with min_tokens; give fewer, or no min_tokens"
        raise SettingError("stop_token_ids", stops, reason)
    if (tokens := sum(map(_most_tokens, params.bad_words or ()))) > BAD_WORDS_TOKENS:
        reason = f"may be {tokens} tokens, at most {BAD_WORDS_TOKENS}; give fewer or shorter ones"
        raise SettingError("bad_words", len(params.bad_words or ()), reason)


def _most_tokens(word: str) -> int:
    """That vLLM makes of a word, by itself and behind a space: tokens hold at least one byte."""
    spelt_out = unicodedata.normalize("NFKD", word)  # longest, whatever a tokenizer normalises
    return 2 * (1 + max(len(text.encode(errors="replace")) for text in (word, spelt_out)))


def has_mask(params: SamplingParams) -> bool:
    """Whether vLLM will forbid tokens of this request, or favour some."""
    return any(_masks(params))


def asks_logprobs(params: SamplingParams) -> bool:
    return params.logprobs is not None or bool(getattr(params, "logprob_token_ids", None))


def scores_prompt(params: SamplingParams) -> bool:
    """Whether a request asks for log-probs of its prompt, in either of vLLM's two ways."""
    # The second way came with a later vLLM than the oldest supported one.
    asked = (params.prompt_logprobs, getattr(params, "prompt_logprob_token_ids", None))
    return any(value is not None for value in asked)


def _masks(params: SamplingParams) -> Iterator[str]:
    if params.min_tokens > 0:
        yield "min_tokens"
    for name in ("structured_outputs", "logit_bias", "allowed_token_ids", "bad_words"):
        if getattr(params, name):
            yield name


def _sampling_given(extra_args: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in SAMPLING_SETTINGS:
        key = XARGS_PREFIX + name
        if extra_args.get(key) is not None:
            yield key, extra_args[key]
