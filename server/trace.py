"""`"extrapolation": {…, "trace": true}`: the answer brings what both models say of its tokens.

The tokens are scored when the answer is complete, by the same path as /v1/delta, and with the gate
that the request used. An answer in one piece has them on each choice as `extrapolation_trace`; a
stream has them in one event more, before `[DONE]`, without choices. A trace asks vLLM for the ids
of the tokens too, which stay in the answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple

from starlette.datastructures import State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlvr_decode.params import Extrapolation, SettingError
from rlvr_decode.server.middleware import (
    HEADER,
    bad_request,
    read_body,
    replaying,
    route_path,
    with_length,
)
from rlvr_decode.server.request import FIELD
from rlvr_decode.server.scores import ADMITTED, ScoredToken, score

TRACE = "trace"
IDS = "return_token_ids"
ROUTES = ("/v1/completions", "/v1/chat/completions")
DONE = b"data: [DONE]"

# The tokens, and the gate to apply to them.
Scorer = Callable[[Sequence[int], Extrapolation], Awaitable[list[ScoredToken]]]


def scorer_from(state: State) -> Scorer:
    """Scores with the engine of an app's state, which is there before the first request."""

    async def scored(token_ids: Sequence[int], gate: Extrapolation) -> list[ScoredToken]:
        return await score(state.engine_client, token_ids, gate=gate, name=ADMITTED)

    return scored


class TraceMiddleware:
    """Takes `trace` out of a request and puts the scored tokens into its answer."""

    def __init__(self, app: ASGIApp, *, score: Scorer) -> None:
        self.app = app
        self.score = score

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        if not is_post or route_path(scope) not in ROUTES:
            await self.app(scope, receive, send)
            return
        body = await read_body(receive)
        if body is None:
            return
        try:
            body, traced = without_trace(body)
        except SettingError as error:
            await bad_request(error)(scope, receive, send)
            return
        scope = with_length(scope, len(body))
        send = Tracing(send, self.score) if traced else send
        await self.app(scope, replaying(body, receive), send)


def without_trace(body: bytes) -> tuple[bytes, bool]:
    """The body without `trace`, and whether that asks for one.

    Raises SettingError for a `trace` that is neither true nor false.
    """
    if f'"{TRACE}"'.encode() not in body:
        return body, False
    try:
        request = json.loads(body, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        if isinstance(error, SettingError):
            raise
        return body, False  # for the next in line to refuse
    settings = request.get(FIELD) if isinstance(request, dict) else None
    if not isinstance(settings, dict) or TRACE not in settings:
        return body, False
    trace = settings.pop(TRACE)
    if not isinstance(trace, bool):
        raise SettingError(f"{FIELD}.{TRACE}", trace, "must be true or false")
    if trace:
        request[IDS] = True
    return json.dumps(request).encode(), trace


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without repeated keys, of which only the last would be passed on."""
    keys = [key for key, _ in pairs]
    for key, value in pairs:
        if keys.count(key) > 1:
            raise SettingError(key, value, "given twice in one object; give it once")
    return dict(pairs)


class Choice(NamedTuple):
    """The tokens of one choice so far."""

    prompt: list[int]
    tokens: list[int]


class Tracing:
    """A `send` that follows an answer of vLLM's and adds the trace."""

    def __init__(self, send: Send, score: Scorer) -> None:
        self._send = send
        self._score = score
        self._start: Message | None = None
        self._passing = False
        self._gate = Extrapolation()
        self._streams = False
        self._held = b""
        self._choices: dict[int, Choice] = {}
        self._chunk: dict[str, Any] = {}

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] != "http.response.body" or self._passing:
            await self._send(message)
        elif self._streams:
            await self._follow(message)
        else:
            await self._gather(message)

    async def _begin(self, message: Message) -> None:
        headers = {name.lower(): value for name, value in message.get("headers", ())}
        self._streams = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        self._passing = message["status"] != 200 or HEADER not in headers
        if not self._passing:
            self._gate = gate_of(headers[HEADER].decode())
        if self._passing or self._streams:
            await self._send(message)
        else:
            self._start = message  # its length will change

    async def _gather(self, message: Message) -> None:
        """An answer in one piece."""
        self._held += message.get("body", b"")
        if message.get("more_body", False):
            return
        answer = json.loads(self._held)
        choices = [
            Choice(
                choice.get("prompt_token_ids") or answer.get("prompt_token_ids"),
                choice["token_ids"],
            )
            for choice in answer["choices"]
        ]
        for choice, trace in zip(answer["choices"], await self._traces(choices), strict=True):
            choice["extrapolation_trace"] = trace
        content = json.dumps(answer).encode()
        assert self._start is not None
        await self._send(with_length(self._start, len(content)))
        await self._send({"type": "http.response.body", "body": content})

    async def _follow(self, message: Message) -> None:
        """Part of a stream: whole events are passed on, and their tokens kept."""
        *events, self._held = (self._held + message.get("body", b"")).split(b"\n\n")
        if not message.get("more_body", False):
            events, self._held = [*events, self._held], b""
        passed = []
        for event in filter(None, events):
            if event == DONE:
                passed.append(await self._last_event())
            else:
                self._keep(event)
            passed.append(event + b"\n\n")
        await self._send({**message, "body": b"".join(passed)})

    def _keep(self, event: bytes) -> None:
        chunk = json.loads(event.removeprefix(b"data: "))
        if "error" in chunk:
            return
        self._chunk = chunk
        for part in chunk.get("choices", ()):
            choice = self._choices.setdefault(part["index"], Choice([], []))
            prompt = part.get("prompt_token_ids") or chunk.get("prompt_token_ids") or ()
            if not choice.prompt:
                choice.prompt.extend(prompt)
            choice.tokens.extend(part.get("token_ids") or ())

    async def _last_event(self) -> bytes:
        indices = sorted(self._choices)
        scored = await self._traces(self._choices[index] for index in indices)
        traces = [
            {"index": index, "tokens": tokens}
            for index, tokens in zip(indices, scored, strict=True)
        ]
        event = self._chunk | {"choices": [], "usage": None, "extrapolation_trace": traces}
        return b"data: " + json.dumps(event).encode() + b"\n\n"

    async def _traces(self, choices: Iterable[Choice]) -> list[list[dict[str, Any]]]:
        """The trace of each choice, all scored in one batch."""
        return await asyncio.gather(*(self._scored(choice) for choice in choices))

    async def _scored(self, choice: Choice) -> list[dict[str, Any]]:
        prompt, tokens = choice
        scored = (await self._score([*prompt, *tokens], self._gate))[len(prompt) :]
        start = scored[0].offset if scored else 0
        return [
            token.model_copy(update={"offset": token.offset - start}).model_dump(
                mode="json", exclude_unset=True
            )
            for token in scored
        ]


def gate_of(header: str) -> Extrapolation:
    """The gate that the header `x-extrapolation` says was applied."""
    said = dict(part.split("=", 1) for part in header.split("; "))
    settings: dict[str, Any] = {name: said[name] for name in ("gate", "primary") if name in said}
    if "threshold" in said:
        settings["threshold"] = float(said["threshold"])
    return Extrapolation(**settings)
