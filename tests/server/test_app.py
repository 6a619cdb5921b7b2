"""vLLM's own app with the pair's field and routes, without an engine behind it."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest
from fastapi.routing import APIRoute
from vllm.entrypoints.launchers.app import build_app

from rlvr_decode.pair import Pair
from rlvr_decode.params import Extrapolation
from rlvr_decode.server import app as server
from rlvr_decode.server.absent import ABSENT
from rlvr_decode.server.arguments import parse
from rlvr_decode.server.limits import Limits
from rlvr_decode.server.request import ROUTES, Served

# Routes of vLLM's server that take a POST and never reach the sampler.
NOT_GENERATING = {
    "/v1/delta",
    "/tokenize",
    "/detokenize",
    "/ping",
    "/scale_elastic_ep",
    "/is_scaling_elastic_ep",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/derender",
    "/v1/completions/derender",
    "/v1/responses/{response_id}/cancel",
    "/inference/v1/abort_requests",
    "/abort_requests",
}
TINY = Served(names=("tiny",), defaults=Extrapolation(strength=1.0), refused={"seed": "because"})


def make_app(*flags):
    """The server's app for the bundled pair."""
    pair, _, args = parse(["tiny", *flags])
    app = build_app(args, ("generate",))
    server.attach(app, pair, TINY, Limits())
    return app


def ask(app, method, path, **request):
    async def send():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


def paths(router):
    """Every path that takes a POST, those of included routers too."""
    for route in router.routes:
        if isinstance(route, APIRoute):
            if "POST" in route.methods:
                yield route.path
        elif hasattr(route, "original_router"):
            yield from paths(route.original_router)


@pytest.mark.parametrize("flags", [[], ["--enable-scale-out"]])
def test_every_route_that_can_generate_takes_the_field_or_refuses_it(flags):
    known = ROUTES.keys() | NOT_GENERATING
    found = set(paths(make_app(*flags)))
    assert "/v1/chat/completions" in found
    assert found <= known, "a route of this vLLM that nobody has decided about"


@pytest.mark.parametrize("path", sorted(ABSENT))
def test_routes_that_could_only_fail_are_not_there(path):
    app = make_app()
    answer = ask(app, "POST", path, json={"new_data_parallel_size": 2})
    assert answer.status_code == 404
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert path not in app.openapi()["paths"]


def test_the_pair_describes_itself():
    answer = ask(make_app(), "GET", "/v1/pair").json()
    pair = Pair.read("tiny")
    assert answer["name"] == "tiny"
    assert answer["models"] == ["tiny", "tiny@rlvr", "tiny@base"]
    assert answer["defaults"]["strength"] == 1.0
    assert answer["limits"]["strength"] == [-1.0, 10.0]
    assert answer["limits"]["plausibility"] == [0.0, 1.0]
    assert answer["limits"]["sequences"] == TINY.max_sequences
    # What needs no threshold has no limits of one.
    assert set(answer["gates"]) - set(answer["limits"]["threshold"]) == {"none", "all"}
    assert answer["limits"]["threshold"]["delta"] == [-100.0, 100.0]
    assert answer["primaries"] == ["rlvr", "base"]
    assert answer["rlvr"] == {"kind": "full", "sha256": dict(pair.rlvr.sha256)}
    assert answer["stop_token_ids"] == list(pair.stop_token_ids)
    assert answer["refused"] == {"seed": "because"}
    assert answer["chat"] is True
    assert "517+486=?\n" in answer["examples"]
    assert "/v1/delta" in answer["routes"]
    assert str(pair.directory) not in str(answer), "paths of this disk are nobody's business"


def test_a_malformed_field_is_refused_in_front_of_vllm():
    response = ask(make_app(), "POST", "/v1/completions", json={"extrapolation": "1"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "extrapolation"


def test_the_key_is_asked_for_before_the_field_is_read():
    app = make_app("--api-key", "secret")
    for method, path in (("POST", "/v1/completions"), ("GET", "/v1/pair")):
        response = ask(app, method, path, json={"extrapolation": "1"})
        assert response.status_code == 401, path
    header = {"authorization": "Bearer secret"}
    response = ask(app, "POST", "/v1/completions", json={"extrapolation": "1"}, headers=header)
    assert response.status_code == 400


def config(*, chunked=False, long=0, v2=False):
    scheduler = SimpleNamespace(enable_chunked_prefill=chunked, long_prefill_token_threshold=long)
    return SimpleNamespace(scheduler_config=scheduler, use_v2_model_runner=v2)


def test_a_seed_is_refused_only_where_it_would_end_the_engine():
    assert server.refused_fields(config()) == {}
    assert server.refused_fields(config(chunked=True, v2=True)) == {}
    for dangerous in (config(chunked=True), config(long=32)):
        assert "without chunked prefill" in server.refused_fields(dangerous)["seed"]
