"""The API key in front of the routes that vLLM leaves open although they put the model to work.

vLLM asks for the key under /v1, /v2, /inference and /cohere only, so that anybody could generate by
/invocations. What tells of the server's health, version and load stays open, as does the page.
"""

from __future__ import annotations

import argparse
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm import envs
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

from rlvr_decode.server.errors import MESSAGES, refusal
from rlvr_decode.server.middleware import route_path

WORKING = frozenset(
    {"/invocations", "/generative_scoring", "/tokenize", "/detokenize", "/abort_requests"}
)


def keys(args: argparse.Namespace) -> list[str]:
    """The keys that vLLM asks for; none, and nobody is asked."""
    return [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]


class KeyMiddleware:
    """Answers 401 to whoever puts the model to work without one of the keys."""

    def __init__(self, app: ASGIApp, *, keys: list[str]) -> None:
        self.app = app
        self.check = AuthenticationMiddleware(app, keys) if keys else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.check is not None and scope["type"] == "http" and route_path(scope) in WORKING:
            asked = scope["method"] != "OPTIONS"  # a browser's question, which carries no key
            if asked and not self.check.verify_token(Headers(scope=scope)):
                status = HTTPStatus.UNAUTHORIZED
                await refusal(status, MESSAGES[status])(scope, receive, send)
                return
        await self.app(scope, receive, send)
