"""With --api-key, every route that puts the model to work asks for it, wherever vLLM has put it."""

import asyncio

import httpx
import pytest
from vllm.entrypoints.launchers.app import build_app

from rlvr_decode.pair import Pair
from rlvr_decode.params import Extrapolation
from rlvr_decode.server.app import attach
from rlvr_decode.server.arguments import parse
from rlvr_decode.server.limits import Limits
from rlvr_decode.server.request import Served

OPEN = {"/", "/health", "/ping", "/load", "/version", "/metrics", "/kv_event_sources"}
OPEN |= {"/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
OPEN |= {"/scale_elastic_ep", "/is_scaling_elastic_ep"}  # not there at all


def make_app(*flags):
    args = parse(["tiny", "--enable-scale-out", *flags]).args
    app = build_app(args, ("generate",))
    served = Served(names=("tiny",), defaults=Extrapolation())
    attach(app, Pair.read("tiny"), served, Limits())
    return app


def status(app, path, *, method="POST", key=None):
    async def send():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            # Refused by whoever reads it, so that no engine is needed.
            return await client.request(method, path, json={"extrapolation": "1"}, headers=headers)

    return asyncio.run(send())


def operations(app):
    paths = app.openapi()["paths"].items()
    return [(path, method) for path, methods in paths for method in methods]


def test_every_route_but_the_open_ones_asks_for_the_key():
    app = make_app("--api-key", "secret")
    guarded = [(path, method) for path, method in operations(app) if path not in OPEN]
    assert len(guarded) > 20
    for path, method in guarded:
        for key in (None, "wrong"):
            answer = status(app, path, method=method, key=key)
            assert answer.status_code == 401, (path, key)
            assert answer.json()["error"]["type"] == "AuthenticationError"


@pytest.mark.parametrize("path", ["/invocations", "/tokenize"])
def test_with_the_key_or_without_any_set_the_request_is_read(path):
    assert status(make_app("--api-key", "secret"), path, key="secret").status_code == 400
    assert status(make_app(), path).status_code == 400
    asked = status(make_app("--api-key", "secret"), path, method="OPTIONS")
    assert asked.status_code == 405, "what a browser asks first carries no key"
