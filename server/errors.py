"""Every refusal in OpenAI's envelope, whoever in the server says it: the outermost layer.

vLLM's routes answer in the envelope already. Its key check, the router and uvicorn do not: they
say `{"error": "Unauthorized"}`, `{"detail": "Not Found"}`, a line of text, or nothing.

    {"error": {"message": …, "type": …, "param": …, "code": 401}}

An answer that says "later" also says when, in `Retry-After`; vLLM's own 503 does not.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlvr_decode.server.metrics import Metrics

TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "ContentTooLargeError",
    429: "RateLimitError",
    431: "HeadersTooLargeError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}
MESSAGES = {401: "a key is asked for; send it as the header `Authorization: Bearer KEY`"}
LATER = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


def envelope(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of a refusal."""
    kind = TYPES.get(status, HTTPStatus(status).phrase)
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def refusal(status: int, message: str, param: str | None = None) -> JSONResponse:
    return JSONResponse(envelope(status, message, param), status_code=status)


class ErrorMiddleware:
    """Puts refusals into the envelope, counts them, and says when to come back.

    retry_after  seconds, for answers that say "later".
    """

    def __init__(self, app: ASGIApp, *, retry_after: int, metrics: Metrics) -> None:
        self.app = app
        self.retry_after = retry_after
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await self.app(scope, receive, _Enveloping(send, self.retry_after, self.metrics))


class _Enveloping:
    """A `send` that holds back a refusal until its body is known."""

    def __init__(self, send: Send, retry_after: int, metrics: Metrics) -> None:
        self._send = send
        self._retry_after = retry_after
        self._metrics = metrics
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
        elif self._start is None or message["type"] != "http.response.body":
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._refuse(self._start)

    async def _refuse(self, start: Message) -> None:
        self._start, status = None, start["status"]
        self._metrics.refused(status)
        body = enveloped(status, self._body)
        headers = MutableHeaders(raw=list(start.get("headers", ())))
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(body))
        if status in LATER:
            headers.setdefault("retry-after", str(self._retry_after))
        await self._send({**start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body})


def enveloped(status: int, body: bytes) -> bytes:
    """The body as it is, if it has an envelope, OpenAI's or another API's; else in one."""
    try:
        said = json.loads(body)
    except ValueError:
        said = body.decode("utf-8", "replace").strip()
    if isinstance(said, dict):
        if isinstance(said.get("error"), dict) or "message" in said:
            return body
        said = said.get("error") or said.get("detail")
    text = said if isinstance(said, str) else ""
    message = MESSAGES.get(status, text or HTTPStatus(status).phrase)
    return json.dumps(envelope(status, message)).encode()
