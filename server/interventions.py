"""The expected rate of intervention of a gated request, told to its client and to `/metrics`.

An answer in one piece has it in the response header `x-extrapolation-intervention`. A stream sends
its headers before its first token; it has the same words in a last comment, which clients of
server-sent events skip:

    : x-extrapolation-intervention: rate=0.0532; positions=128
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.datastructures import State
from starlette.types import Message, Send

from rlvr_decode.interventions import intervention_rates
from rlvr_decode.server.metrics import Metrics

HEADER = b"x-extrapolation-intervention"

# m of every position drawn for the request with a ticket; asking a second time gives nothing.
Rates = Callable[[str], Awaitable[list[float]]]


def rates_from(state: State) -> Rates:
    """From the engine of a vLLM app, whose state this is."""

    async def rates(ticket: str) -> list[float]:
        by_rank = await state.engine_client.collective_rpc("take_side_channel", args=(ticket,))
        return intervention_rates(by_rank[0])  # all ranks have the whole logits

    return rates


class Reporting:
    """A `send` that waits for the end of a generation and says how often it was redrawn."""

    def __init__(self, send: Send, ticket: str, rates: Rates, metrics: Metrics) -> None:
        self._send = send
        self._ticket = ticket
        self._rates = rates
        self._metrics = metrics
        self._streaming = False
        self._told = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = await self._start(message)
        elif self._streaming and not message.get("more_body", False):
            message = await self._end(message)
        await self._send(message)

    async def _start(self, message: Message) -> Message:
        headers = list(message.get("headers", []))
        self._streaming = any(
            name.lower() == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in headers
        )
        words = b"" if self._streaming else await self.ask()
        return {**message, "headers": [*headers, (HEADER, words)]} if words else message

    async def _end(self, message: Message) -> Message:
        words = await self.ask()
        comment = b": " + HEADER + b": " + words + b"\n\n" if words else b""
        return {**message, "body": message.get("body", b"") + comment}

    async def ask(self) -> bytes:
        """What to tell the client, once; also to be called when it has left."""
        if self._told:
            return b""
        self._told = True
        # Also when the client leaves meanwhile, lest the engine keeps them.
        rates = await asyncio.shield(self._rates(self._ticket))
        if not rates:
            return b""
        rate = sum(rates) / len(rates)
        self._metrics.intervened(rate)
        return f"rate={rate:.4g}; positions={len(rates)}".encode()
