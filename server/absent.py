"""Routes of vLLM's own server that this one leaves out, because nothing good can come of them.

`/scale_elastic_ep` changes how many engines there are and asks for no key; here it could only fail.
`/v1/systemone` is for models made for it. Both would answer with a 5xx.
"""

from __future__ import annotations

from http import HTTPStatus

from starlette.types import ASGIApp, Receive, Scope, Send

from rlvr_decode.server.errors import refusal
from rlvr_decode.server.middleware import route_path

ABSENT = frozenset({"/scale_elastic_ep", "/is_scaling_elastic_ep", "/v1/systemone"})


class AbsentMiddleware:
    """Answers 404 for the routes that are left out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and route_path(scope) in ABSENT:
            status = HTTPStatus.NOT_FOUND
            await refusal(status, status.phrase)(scope, receive, send)
        else:
            await self.app(scope, receive, send)
