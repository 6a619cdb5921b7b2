"""Tokens scored by the serving engine: what each model says of every token of a text."""

from __future__ import annotations

import asyncio
import functools
import secrets
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from pydantic import BaseModel, Field
from vllm import TokensPrompt
from vllm.v1.engine.async_llm import AsyncLLM

from rlvr_decode.engine.prompt_scores import Scoring
from rlvr_decode.params import Extrapolation


class Alternative(BaseModel):
    """A token that could have come instead."""

    token_id: int
    text: str
    rlvr_logprob: float | None
    base_logprob: float | None
    delta: float | None


class ScoredToken(BaseModel):
    """One token and what both models say of it, in nats; null before any context, or if infinite.

    Entropies, KL and rate are those of the distribution that the token was one draw from.
    """

    token_id: int
    text: str = Field(description="'' if the token ends inside a character, which comes later")
    offset: int = Field(description="where the text begins in all of it, in bytes of UTF-8")
    rlvr_logprob: float | None = None
    base_logprob: float | None = None
    delta: float | None = Field(None, description="rlvr_logprob - base_logprob")
    rlvr_entropy: float | None = None
    base_entropy: float | None = None
    kl: float | None = Field(None, description="KL(rlvr || base)")
    rate: float | None = Field(
        None, description="with a gate: how likely it throws away the primary's draw"
    )
    acts: bool | None = Field(
        None, description="with a gate: whether it throws this token away; null if by chance"
    )
    top: list[Alternative] | None = Field(
        None, description="the `top` most likely tokens of either model, rlvr's order"
    )


# How the requests of a trace are called, whose answer was admitted to the queue before them. Nobody
# can guess it: /v1/responses lets a client name its request.
ADMITTED = f"trace-{secrets.token_hex(8)}-"
VALUES = ("rlvr_logprob", "base_logprob", "delta", "rlvr_entropy", "base_entropy", "kl")


class Tokenizer(Protocol):
    """What is needed of the engine's tokenizer."""

    def decode(self, ids: Sequence[int], /, *, skip_special_tokens: bool) -> str: ...


async def score(
    client: AsyncLLM,
    token_ids: Sequence[int],
    *,
    top: int = 0,
    gate: Extrapolation | None = None,
    name: str = "delta-",
) -> list[ScoredToken]:
    """Score tokens, in one batch with whatever else the engine is doing.

    Of tokens that fill the model's context the last stays without values.

    top   how many alternatives of each model to give.
    gate  settings whose gate is applied to each token; strength and plausibility do not matter.
    name  that the engine's request begins with.
    """
    gate = gate or Extrapolation()
    scoring = Scoring(
        key=uuid.uuid4().hex,
        top=top,
        gate=gate.gate,
        threshold=gate.threshold,
        primary=gate.primary,
    )
    submitted = list(token_ids[: longest(client)])
    values = await _values(client, submitted, scoring, name) if len(submitted) > 1 else {}
    # With preemption a position comes twice; the values are the same.
    rows = {position: row for row, position in enumerate(values.get("position", ()))}
    if len(rows) != len(submitted) - 1:
        raise RuntimeError(f"the engine scored {len(rows)} of {len(submitted) - 1} tokens")
    # Long texts take long to spell out; other requests go on meanwhile.
    return await asyncio.to_thread(_assemble, client.get_tokenizer(), token_ids, values, rows, gate)


def _assemble(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    values: dict[str, list[Any]],
    rows: dict[int, int],
    gate: Extrapolation,
) -> list[ScoredToken]:
    @functools.cache
    def alone(token_id: int) -> str:
        return tokenizer.decode([token_id], skip_special_tokens=False)

    return [
        ScoredToken(
            token_id=token_id, text=text, offset=offset, **_found(values, rows.get(i), gate, alone)
        )
        for i, (token_id, (text, offset)) in enumerate(
            zip(token_ids, texts(tokenizer, token_ids), strict=True)
        )
    ]


def longest(client: AsyncLLM) -> int:
    """How many tokens can be scored at once; one place is for the token vLLM always samples."""
    return int(client.model_config.max_model_len) - 1


async def _values(
    client: AsyncLLM, token_ids: list[int], scoring: Scoring, name: str
) -> dict[str, list[Any]]:
    await client.collective_rpc("open_side_channel", args=(scoring.key,))
    try:
        prompt = TokensPrompt(prompt_token_ids=token_ids)
        params = scoring.sampling_params()
        # Of several replicas, the calls around this reach the first.
        async for _ in client.generate(prompt, params, name + scoring.key, data_parallel_rank=0):
            pass
    finally:
        # Also when the client has left, lest the values stay.
        taking = client.collective_rpc("take_side_channel", args=(scoring.key,))
        by_rank = await asyncio.shield(taking)
    values: dict[str, list[Any]] = by_rank[0]  # all ranks have the whole logits
    return values


def _found(
    values: dict[str, list[Any]],
    row: int | None,
    gate: Extrapolation,
    alone: Callable[[int], str],
) -> dict[str, Any]:
    """What was found of one token; `alone` is the text of a token by itself."""
    found: dict[str, Any] = {name: None if row is None else values[name][row] for name in VALUES}
    if gate.gated:
        found["rate"] = None if row is None else values["rate"][row]
        found["acts"] = None if row is None else acts(gate, found["delta"], found["rate"])
    if row is not None and "top_token_ids" in values:
        columns = ("top_token_ids", "top_rlvr_logprobs", "top_base_logprobs")
        ids, rlvr, base = (values[name][row] for name in columns)
        found["top"] = list(_alternatives(ids, rlvr, base, alone))
    return found


def acts(gate: Extrapolation, delta: float, rate: float) -> bool | None:
    """Whether a gate throws away a token that was drawn with this Δ, at this rate."""
    if gate.gate == "random":
        return None
    if gate.gate == "delta":
        assert gate.threshold is not None
        return delta <= gate.threshold
    return rate > 0.5  # 0 or 1: the others look at the distribution, not at the token


def _alternatives(
    ids: list[int], rlvr: list[float], base: list[float], alone: Callable[[int], str]
) -> Iterator[Alternative]:
    """Each of the tokens once, most likely under rlvr first."""
    by_id = {each: (r, b) for each, r, b in zip(ids, rlvr, base, strict=True)}
    for each, (r, b) in sorted(by_id.items(), key=lambda item: -item[1][0]):
        delta = r - b if r != b else 0.0  # also where both are −inf
        yield Alternative(
            token_id=each, text=alone(each), rlvr_logprob=r, base_logprob=b, delta=delta
        )


def texts(tokenizer: Tokenizer, token_ids: Sequence[int]) -> Iterator[tuple[str, int]]:
    """The text that each token adds to those before it, and where it begins, in bytes.

    A character whose bytes are spread over several tokens belongs to the last of them.
    """
    # Decoding begins one finished token early, since some tokenizers treat the first one apart.
    previous, finished, offset = 0, 0, 0
    for end in range(1, len(token_ids) + 1):
        before = tokenizer.decode(token_ids[previous:finished], skip_special_tokens=False)
        text = tokenizer.decode(token_ids[previous:end], skip_special_tokens=False)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(token_ids):
            yield "", offset
            continue
        yield text[len(before) :], offset
        offset += len(text[len(before) :].encode())
        previous, finished = finished, end
