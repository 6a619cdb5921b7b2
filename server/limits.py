"""What one HTTP request may bring: so many headers, so many bytes of them, so many of a body.

Headers are looked at before anything else; `heads.py` sees to those that never end. A body is read
up to its limit and no further, after the key was checked; uvicorn throws away what still comes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from dataclasses import dataclass, fields
from http import HTTPStatus

from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.utils.argparse_utils import FlexibleArgumentParser

from rlvr_decode.server.errors import refusal
from rlvr_decode.server.middleware import replaying

MAX_N = "VLLM_MAX_N_SEQUENCES"
WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of the server; the flags of `rlvr-decode serve` that set them have the same names.

    max_body_bytes    of one request; beyond it 413.
    max_body_seconds  until the whole of it has come; beyond it 408.
    max_header_bytes  of the request line and all headers together; beyond it 431.
    max_headers       how many of them; beyond it 431.
    max_sequences     that one request may have generated: n times its prompts; beyond it 400. Each
                      holds KV blocks of both models.
    retry_after       seconds, told with 503.
    """

    max_body_bytes: int = 8 * 2**20
    max_body_seconds: int = 60
    max_header_bytes: int = 64 * 2**10
    max_headers: int = 128
    max_sequences: int = 128
    retry_after: int = 1


HELP = {
    "max_body_bytes": "Bytes of one request's body; more is answered 413.",
    "max_body_seconds": "Seconds in which all of a body must come; after them the answer is 408.",
    "max_header_bytes": "Bytes of a request's line and headers together; more is answered 431.",
    "max_headers": "Headers of one request; more are answered 431.",
    "max_sequences": "Sequences that one request may have generated, n times its prompts; more is "
    "answered 400. Each holds KV blocks of both models. VLLM_MAX_N_SEQUENCES, which bounds n "
    "alone, is its default where it is set, and set to it.",
    "retry_after": "Seconds that a client is told to wait when the queue is full (503; see "
    "--max-num-queued-reqs and --max-num-queued-tokens, which are bounded here by default).",
}


def add_limits(parser: FlexibleArgumentParser) -> None:
    """Add the flags, as their own group of `--help`."""
    group = parser.add_argument_group(  # type: ignore[no-untyped-call]
        "Limits", "What one request may bring, and ask for."
    )
    defaults = {each.name: each.default for each in fields(Limits)}
    if (most := os.environ.get(MAX_N)) is not None:
        defaults["max_sequences"] = _positive(most)
    for name, words in HELP.items():
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, type=_positive, default=defaults[name], help=words)


def limits_from(args: argparse.Namespace, queue: int) -> Limits:
    """The limits that a command line sets; no request may ask for more than the queue holds."""
    said = {each.name: getattr(args, each.name) for each in fields(Limits)}
    return Limits(**said | {"max_sequences": min(said["max_sequences"], max(1, queue))})


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


class HeaderLimit:
    """Refuses a request with too many headers, or too long ones."""

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = _too_much(scope, self.limits) if scope["type"] == "http" else None
        if reason is None:
            await self.app(scope, receive, send)
        else:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            await refusal(status, reason, "headers")(scope, receive, send)


def _too_much(scope: Scope, limits: Limits) -> str | None:
    headers = scope["headers"]
    if len(headers) > limits.max_headers:
        return f"{len(headers)} headers: at most {limits.max_headers} (--max-headers)"
    line = len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"])
    size = line + sum(len(name) + len(value) for name, value in headers)
    if size > limits.max_header_bytes:
        allowed = f"at most {limits.max_header_bytes} (--max-header-bytes)"
        return f"{size} bytes of headers: {allowed}"
    return None


class _TooLongError(Exception):
    """A body goes on beyond its limit."""


class BodyLimit:
    """Reads a body, and refuses one that is too long or too slow.

    A declared length is enough to refuse it. Without one, nothing beyond the limit and one read of
    the connection is kept.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self.app = app
        self.limit, self.seconds = limits.max_body_bytes, limits.max_body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in WITH_BODY:
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if int(declared) > self.limit:
            await self._refuse(f"{int(declared)} bytes", scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.seconds):
                body = await self._read(receive)
        except TimeoutError:
            reason = f"no whole body within {self.seconds} s (--max-body-seconds)"
            await refusal(HTTPStatus.REQUEST_TIMEOUT, reason, "body")(scope, receive, send)
            return
        except _TooLongError:
            await self._refuse("a longer body", scope, receive, send)
            return
        if body is not None:
            await self.app(scope, replaying(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None if the client has left."""
        chunks, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self.limit:
                raise _TooLongError
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def _refuse(self, what: str, scope: Scope, receive: Receive, send: Send) -> None:
        reason = f"{what}: at most {self.limit} bytes (--max-body-bytes)"
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        await refusal(status, reason, "body")(scope, receive, send)
