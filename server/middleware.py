"""The request field `extrapolation` in front of vLLM's OpenAI app: HTTP only, as pure ASGI.

    client ──► body ──► translate ──► vLLM's app
                            │
                            └──► 400, naming the setting, its value and what is permitted

Everything else passes untouched: other routes, other methods, bodies that vLLM will refuse in its
own words, and every message after the body, so that a client that leaves still stops its request.
"""

from __future__ import annotations

import uuid
from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlvr_decode.params import SettingError
from rlvr_decode.server.errors import refusal
from rlvr_decode.server.interventions import Rates, Reporting
from rlvr_decode.server.metrics import Metrics
from rlvr_decode.server.request import ROUTES, Served, Translated, translate

HEADER = b"x-extrapolation"


class ExtrapolationMiddleware:
    """Applies each request's extrapolation settings, or refuses the request.

    The settings that were applied come back in the response header `x-extrapolation`.
    """

    def __init__(self, app: ASGIApp, *, served: Served, rates: Rates, metrics: Metrics) -> None:
        self.app = app
        self.served = served
        self.rates = rates
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        route = ROUTES.get(route_path(scope)) if is_post else None
        if route is None:
            await self.app(scope, receive, send)
            return
        body = await read_body(receive)
        if body is None:
            return
        try:
            translated = translate(body, route, self.served, ticket=uuid.uuid4().hex)
        except SettingError as error:
            await bad_request(error)(scope, receive, send)
            return
        if translated is None:
            await self.app(scope, replaying(body, receive), send)
        else:
            scope = with_length(scope, len(translated.body))
            await self.apply(translated, scope, replaying(translated.body, receive), send)

    async def apply(
        self, translated: Translated, scope: Scope, receive: Receive, send: Send
    ) -> None:
        send = self.announcing(translated, send)
        if translated.ticket is None:
            await self.app(scope, receive, send)
            return
        reporting = Reporting(send, translated.ticket, self.rates, self.metrics)
        try:
            await self.app(scope, receive, reporting)
        finally:
            await reporting.ask()  # the client may have left before the end

    def announcing(self, translated: Translated, send: Send) -> Send:
        """A `send` that adds the response header with the settings applied."""

        async def announced(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] < 400:
                    self.metrics.answered(translated.settings)
                headers = [*message.get("headers", []), (HEADER, str(translated.settings).encode())]
                message = {**message, "headers": headers}
            await send(message)

        return announced


def route_path(scope: Scope) -> str:
    """The path without the prefix of a proxy, as vLLM's own router sees it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if path.startswith(root + "/") else path


async def read_body(receive: Receive) -> bytes | None:
    """The whole body; None if the client left before it was complete."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


def replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body at once, then whatever the client does next."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


def with_length(scope: Scope, length: int) -> Scope:
    """The same request with a body of another length, sent in one piece."""
    framing = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in framing]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def bad_request(error: SettingError) -> JSONResponse:
    """The answer to a request whose setting was refused."""
    return refusal(HTTPStatus.BAD_REQUEST, _told(str(error)), _told(error.name))


def _told(text: str) -> str:
    """A text that may hold keys of the request: of any length, and no Unicode at all."""
    shown = text if len(text) <= 400 else text[:399] + "…"
    return shown.encode("utf-8", "backslashreplace").decode()
