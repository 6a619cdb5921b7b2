"""Sampling from a server that is running, through the official client."""

from __future__ import annotations

import asyncio
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import openai

from rlvr_decode.evaluate.arms import Arm
from rlvr_decode.evaluate.sampling import Question, Response

TIME_OUT = 3600.0
# What the server says of a gated request, over all of its samples.
INTERVENTION = "x-extrapolation-intervention"
_RATE = re.compile(r"rate=([0-9.e+-]+)")


class EndpointSampler:
    """Answers from `rlvr-decode serve`, or a server that takes the same requests.

    url          of the API, such as http://127.0.0.1:8000/v1.
    model        the pair's name there.
    by_name      say the strength in the model's name, NAME@strength, for a proxy that drops unknown
                 fields; then nothing but the strength can be said.
    concurrency  requests under way at a time.

    Raises ValueError if nobody answers there, or the model is not served.
    """

    def __init__(
        self, url: str, *, model: str, by_name: bool, concurrency: int, max_tokens: int
    ) -> None:
        self._url = url.rstrip("/")
        self._model, self._by_name = model, by_name
        self._concurrency, self._max_tokens = concurrency, max_tokens
        self._check()

    def _check(self) -> None:
        try:
            with openai.OpenAI(base_url=self._url, api_key=_key(), max_retries=0) as client:
                served = [model.id for model in client.models.list()]
        except openai.APIConnectionError as error:
            raise ValueError(
                f"--endpoint {self._url}: nobody answers ({error.__cause__ or error}); start "
                "`rlvr-decode serve PAIR`, or leave --endpoint out to evaluate in this process"
            ) from None
        except openai.APIStatusError as error:
            raise ValueError(
                f"--endpoint {self._url}: {error.message}; the address ends in /v1, and a key is "
                "read from OPENAI_API_KEY"
            ) from None
        if self._model not in served:
            raise ValueError(
                f"--endpoint {self._url}: does not serve {self._model!r} but {', '.join(served)}; "
                "name one of them by --model"
            )

    def sample(
        self, questions: Sequence[Question], arm: Arm, *, samples: int, seed: int
    ) -> list[list[Response]]:
        return asyncio.run(self._sample(questions, arm, samples, seed))

    async def _sample(
        self, questions: Sequence[Question], arm: Arm, samples: int, seed: int
    ) -> list[list[Response]]:
        gate = asyncio.Semaphore(self._concurrency)
        async with openai.AsyncOpenAI(
            base_url=self._url, api_key=_key(), max_retries=5, timeout=TIME_OUT
        ) as client:

            async def ask(number: int) -> list[Response]:
                async with gate:
                    return await self._ask(client, questions[number], arm, samples, seed + number)

            try:
                return await asyncio.gather(*map(ask, range(len(questions))))
            except openai.OpenAIError as error:
                raise ValueError(f"--endpoint {self._url}: {arm.label}: {error}") from error

    async def _ask(
        self, client: openai.AsyncOpenAI, question: Question, arm: Arm, samples: int, seed: int
    ) -> list[Response]:
        request = self._request(arm) | {"n": samples, "seed": seed}
        if question.messages:
            turns: list[Any] = [{"role": r, "content": content} for r, content in question.messages]
            raw: Any = await client.chat.completions.with_raw_response.create(
                messages=turns, logprobs=True, **request
            )
            return [
                _response(
                    choice.message.content or "",
                    [
                        token.logprob
                        for token in (choice.logprobs and choice.logprobs.content) or []
                    ],
                    choice,
                    arm,
                    raw.headers,
                )
                for choice in raw.parse().choices
            ]
        raw = await client.completions.with_raw_response.create(
            prompt=question.text, logprobs=0, **request
        )
        return [
            _response(
                choice.text,
                (choice.logprobs and choice.logprobs.token_logprobs) or [],
                choice,
                arm,
                raw.headers,
            )
            for choice in raw.parse().choices
        ]

    def _request(self, arm: Arm) -> dict[str, Any]:
        settings = {k: v for k, v in asdict(arm.extrapolation).items() if v is not None}
        if not arm.extrapolation.gated:
            del settings["primary"]
        body: dict[str, Any] = {} if self._by_name else {"extrapolation": settings}
        if arm.min_p:
            body["min_p"] = arm.min_p
        name = f"{self._model}@{arm.extrapolation.strength:g}" if self._by_name else self._model
        return {
            "model": name,
            "temperature": arm.temperature,
            "top_p": arm.top_p,
            "max_tokens": self._max_tokens,
            "extra_body": body,
        }

    def close(self) -> None:
        pass


def _response(
    text: str,
    logprobs: Sequence[float | None],
    choice: Any,
    arm: Arm,
    headers: Mapping[str, str],
) -> Response:
    """A server's log-probs are taken before temperature and top-p, except under a gate."""
    known = [value for value in logprobs if value is not None]
    if not known:
        raise ValueError("the server sent no log-probs, by which tokens are counted")
    as_drawn = arm.extrapolation.gated or (arm.temperature == arm.top_p == 1 and not arm.min_p)
    entropy = -statistics.fmean(known) if as_drawn else None
    told = _RATE.search(headers.get(INTERVENTION, ""))
    return Response(
        text=text,
        length=len(known),
        finished=choice.finish_reason == "stop",
        entropy=entropy if arm.temperature else 0.0,
        rate=float(told[1]) if told else None,
    )


def _key() -> str:
    """The client insists on a key; servers without one accept any."""
    return os.environ.get("OPENAI_API_KEY") or "none"
