"""uvicorn's HTTP parser with a bound on what comes before a body, and an envelope for its refusals.

uvicorn takes headers of any length as they come; vLLM's `--h11-…` flags bound another parser than
the one that uvicorn prefers. `limits.py` knows the exact limits, once all headers are here; this
sees to a client that never ends them, or takes its time.
"""

from __future__ import annotations

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rlvr_decode.server.errors import envelope

HEAD_SECONDS = 60.0


def protocol_for(
    max_header_bytes: int, head_seconds: float = HEAD_SECONDS
) -> type[HttpToolsProtocol]:
    """The protocol class for `uvicorn.Config(http=…)`."""

    class BoundedHead(HttpToolsProtocol):
        """Closes a connection whose next head is longer than the limit and one read, or late."""

        in_head = True
        head_bytes = 0

        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.deadline = self.loop.call_later(head_seconds, transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            self._in_time()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.in_head, self.head_bytes = True, 0
            if self.deadline is None:
                self.deadline = self.loop.call_later(head_seconds, self.transport.close)

        def on_headers_complete(self) -> None:
            self.in_head = False
            self._in_time()
            super().on_headers_complete()

        def _in_time(self) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
                self.deadline = None

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self.in_head or self.transport.is_closing():
                return
            self.head_bytes += len(data)
            if self.head_bytes > max_header_bytes:
                reason = f"at most {max_header_bytes} bytes of headers (--max-header-bytes)"
                self.transport.write(_response(431, b"Headers Too Large", reason, "headers"))
                self.transport.close()

        def send_400_response(self, msg: str) -> None:
            self.transport.write(_response(400, b"Bad Request", msg, None))
            self.transport.close()

    return BoundedHead


def _response(status: int, phrase: bytes, message: str, param: str | None) -> bytes:
    body = json.dumps(envelope(status, message, param)).encode()
    head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\n" % (status, phrase)
    return head + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body
