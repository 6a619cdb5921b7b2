"""Gated requests over HTTP: their sampling settings move, and how often they were redrawn is told.

The app behind the middleware is a fake that answers with the request as it arrived.
"""

import asyncio
import json

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from rlvr_decode.params import Extrapolation
from rlvr_decode.server.metrics import Metrics
from rlvr_decode.server.middleware import ExtrapolationMiddleware
from rlvr_decode.server.request import ROUTES, Served

SERVED = Served(names=("tiny",), defaults=Extrapolation(strength=1.0, plausibility=0.05))
CHAT = "/v1/chat/completions"
GATE = {"gate": "delta", "threshold": -0.3, "primary": "base"}
NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
RULE = {
    "extrapolation_strength": 1.0,
    "extrapolation_plausibility": 0.05,
    "extrapolation_gate": "delta",
    "extrapolation_threshold": -0.3,
    "extrapolation_primary": "base",
}


def flat(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    return {f"extrapolation_{name}": value for name, value in settings.items()}


async def echo(scope, receive, send):
    """Answers with the body it got."""
    message = await receive()
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": message["body"]})


class Engine:
    """What the front end asks of the engine: rates by ticket, once."""

    def __init__(self, rates):
        self.rates = rates
        self.asked = []

    async def __call__(self, ticket):
        self.asked.append(ticket)
        return self.rates


def ask(body, *, path=CHAT, served=SERVED, app=echo, rates=(), registry=None):
    engine = Engine(list(rates))
    metrics = Metrics(registry or CollectorRegistry())

    async def post():
        middleware = ExtrapolationMiddleware(app, served=served, rates=engine, metrics=metrics)
        transport = httpx.ASGITransport(middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(path, json=body)

    response = asyncio.run(post())
    response.engine = engine
    return response


def arrived(response):
    """The body that reached the app, and the ticket that was in it."""
    assert response.status_code == 200, response.text
    body = response.json()
    carrier = body["sampling_params"]["extra_args"] if "sampling_params" in body else None
    ticket = (carrier or body["vllm_xargs"]).pop("extrapolation_ticket", None)
    return body, ticket


@pytest.mark.parametrize(
    ("said", "moved"),
    [
        ({}, flat()),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.1}, flat(0.7, 20, 0.9, 0.1)),
        ({"temperature": 0}, flat(0)),
        ({"temperature": None, "top_k": -1}, flat(top_k=-1)),
        ({"vllm_xargs": {"extrapolation_temperature": 0.5}}, flat(0.5)),
        ({"temperature": 1.0, "vllm_xargs": {"extrapolation_temperature": 0.5}}, flat(0.5)),
        ({"temperature": 0.5, "vllm_xargs": {"extrapolation_temperature": 0.5}}, flat(0.5)),
    ],
)
def test_sampling_settings_move_to_the_rule(said, moved):
    body, _ = arrived(ask({"model": "tiny", "extrapolation": GATE} | said))
    assert body == {"model": "tiny", "vllm_xargs": RULE | moved} | NEUTRAL


def test_the_servers_defaults_move_too():
    served = Served(
        names=("tiny",),
        defaults=SERVED.defaults,
        sampling={"temperature": 0.6, "top_k": 20, "max_tokens": 5},
    )
    body, _ = arrived(ask({"extrapolation": GATE, "top_k": 5}, served=served))
    assert body["vllm_xargs"] == RULE | flat(0.6, 5)
    # vLLM does not apply them to sampling params that are given whole.
    body = {"sampling_params": {"top_p": 0.9}, "extrapolation": GATE}
    seen, ticket = arrived(ask(body, path="/inference/v1/generate", served=served))
    assert ticket
    assert seen["sampling_params"] == NEUTRAL | {"extra_args": RULE | flat(top_p=0.9)}


def test_a_rendered_request_can_be_sent_as_it_is():
    """What a render route makes of a request has its settings in place, and no ticket."""
    rendered, ticket = arrived(
        ask({"extrapolation": GATE, "temperature": 0.5}, path="/v1/completions/render")
    )
    assert ticket is None
    xargs = rendered.pop("vllm_xargs")
    body = {"sampling_params": rendered | {"extra_args": dict(xargs)}}
    seen, ticket = arrived(ask(body, path="/inference/v1/generate"))
    assert ticket
    assert seen["sampling_params"] == NEUTRAL | {"extra_args": xargs}


def test_requests_without_a_gate_keep_their_sampling_settings():
    served = Served(names=("tiny",), defaults=SERVED.defaults, sampling={"temperature": 0.6})
    body, ticket = arrived(ask({"extrapolation": 0.5, "top_p": 0.9}, served=served))
    assert ticket is None
    assert body["top_p"] == 0.9 and "temperature" not in body
    assert not [key for key in body["vllm_xargs"] if "temperature" in key]


def test_a_default_gate_applies_and_can_be_left():
    gated = Extrapolation(strength=0.1, gate="kl", threshold=0.5, primary="base")
    served = Served(names=("tiny",), defaults=gated)
    body, _ = arrived(ask({"temperature": 0.7}, served=served))
    assert body["vllm_xargs"] == gated.to_extra_args() | flat(0.7)
    body, _ = arrived(ask({"temperature": 0.7, "extrapolation": {"gate": "none"}}, served=served))
    assert body["temperature"] == 0.7
    assert body["vllm_xargs"] == Extrapolation(strength=0.1).to_extra_args()


def test_the_names_of_the_models_have_no_gate():
    gated = Extrapolation(strength=0.1, gate="kl", threshold=0.5, primary="base")
    served = Served(names=("tiny",), defaults=gated)
    for suffix, strength in (("rlvr", 0), ("base", -1)):
        body, _ = arrived(ask({"model": f"tiny@{suffix}"}, served=served))
        assert body["vllm_xargs"] == Extrapolation(strength=strength).to_extra_args()
    response = ask({"model": "tiny@0"}, served=served)
    assert "gate=kl" in response.headers["x-extrapolation"]
    response = ask({"model": "tiny@rlvr", "extrapolation": GATE}, app=never)
    assert response.json()["error"]["param"] == "extrapolation.gate"


def test_the_header_names_the_rule():
    response = ask({"extrapolation": GATE})
    expected = "strength=1; plausibility=0.05; gate=delta; threshold=-0.3; primary=base"
    assert response.headers["x-extrapolation"] == expected


REFUSED = [
    ({"extrapolation": {"gate": "delta"}}, "extrapolation.threshold", "gate delta needs a number"),
    ({"extrapolation": {"threshold": -1}}, "extrapolation.threshold", "gate none compares with no"),
    ({"extrapolation": {"primary": "base"}}, "extrapolation.primary", "gate none draws once"),
    ({"extrapolation": GATE | {"threshold": 1e9}}, "extrapolation.threshold", "from -100 to 100"),
    ({"extrapolation": GATE | {"threshold": "0"}}, "extrapolation.threshold", "must be a number"),
    ({"extrapolation": GATE | {"primary": "both"}}, "extrapolation.primary", "one of rlvr, base"),
    ({"extrapolation": GATE | {"temperature": 1}}, "extrapolation.temperature", "unknown setting"),
    (
        {"extrapolation": {"gate": "kl"}, "vllm_xargs": {"extrapolation_threshold": -1}},
        "vllm_xargs.extrapolation_threshold",
        "must be from 0 to 100",
    ),
    ({"extrapolation": GATE, "temperature": 2.5}, "temperature", "must be from 0 to 2"),
    ({"extrapolation": GATE, "temperature": "1"}, "temperature", "must be a number"),
    ({"extrapolation": GATE, "top_p": 0}, "top_p", "must be above 0"),
    ({"extrapolation": GATE, "top_k": 1.5}, "top_k", "must be a whole number"),
    ({"extrapolation": GATE, "min_p": -0.1}, "min_p", "must be from 0 to 1"),
    (
        {
            "extrapolation": GATE,
            "temperature": 0.7,
            "vllm_xargs": {"extrapolation_temperature": 0.5},
        },
        "temperature",
        "disagrees with extrapolation_temperature, which says 0.5",
    ),
    (
        {"extrapolation": GATE, "vllm_xargs": {"extrapolation_ticket": "a"}},
        "vllm_xargs.extrapolation_ticket",
        "unknown setting",
    ),
    ({"extrapolation": GATE, "use_beam_search": True}, "use_beam_search", "drops the strength"),
    ({"extrapolation": GATE | {"strength": 0}, "prompt_logprobs": 1}, "prompt_logprobs", "rlvr's"),
]


async def never(scope, receive, send):
    raise AssertionError("a refused request reached the app")


@pytest.mark.parametrize(("body", "param", "words"), REFUSED)
def test_what_cannot_be_applied_is_refused_by_name(body, param, words):
    response = ask(body, app=never)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(param + "=") and words in error["message"]


def test_sampling_params_are_refused_by_their_whole_name():
    body = {"extrapolation": GATE, "sampling_params": {"top_p": 2}}
    response = ask(body, path="/inference/v1/generate", app=never)
    assert response.json()["error"]["param"] == "sampling_params.top_p"


def test_a_setting_given_twice_is_refused():
    async def post():
        middleware = ExtrapolationMiddleware(
            never, served=SERVED, rates=Engine([]), metrics=Metrics(CollectorRegistry())
        )
        transport = httpx.ASGITransport(middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = b'{"extrapolation": {"gate": "all"}, "top_p": 0.5, "top_p": 0.6}'
            return await client.post(CHAT, content=body)

    assert asyncio.run(post()).json()["error"]["param"] == "top_p"


@pytest.mark.parametrize("path", [p for p, route in ROUTES.items() if not route.extrapolates])
def test_a_route_that_cannot_extrapolate_refuses_a_gate(path):
    response = ask({"extrapolation": {"strength": 0, "gate": "all"}}, path=path, app=never)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("extrapolation='all': this route")


def test_an_answer_says_how_often_it_was_redrawn():
    registry = CollectorRegistry()
    response = ask({"extrapolation": GATE}, rates=[0.0, 0.25, 0.5], registry=registry)
    assert response.headers["x-extrapolation-intervention"] == "rate=0.25; positions=3"
    _, ticket = arrived(response)
    assert response.engine.asked == [ticket]
    assert registry.get_sample_value("rlvr_decode_intervention_rate_sum") == 0.25
    assert registry.get_sample_value("rlvr_decode_requests_total", {"gate": "delta"}) == 1


def test_without_a_gate_the_engine_is_not_asked():
    registry = CollectorRegistry()
    response = ask({"extrapolation": 0.5}, registry=registry)
    assert response.engine.asked == []
    assert "x-extrapolation-intervention" not in response.headers
    assert registry.get_sample_value("rlvr_decode_requests_total", {"gate": "none"}) == 1
    assert registry.get_sample_value("rlvr_decode_strength_bucket", {"le": "0.25"}) == 0
    assert registry.get_sample_value("rlvr_decode_strength_bucket", {"le": "0.5"}) == 1
    assert b"rlvr_decode_intervention_rate_count 0.0" in generate_latest(registry)


def test_a_request_that_vllm_refuses_is_not_counted():
    async def refuse(scope, receive, send):
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    registry = CollectorRegistry()
    response = ask({"extrapolation": GATE}, app=refuse, registry=registry)
    assert "x-extrapolation-intervention" not in response.headers
    assert registry.get_sample_value("rlvr_decode_requests_total", {"gate": "delta"}) == 0


def test_a_stream_says_it_in_a_last_comment():
    async def stream(scope, receive, send):
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in (b'data: {"a": 1}\n\n', b"data: [DONE]\n\n"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    response = ask({"extrapolation": GATE, "stream": True}, app=stream, rates=[0.1, 0.2])
    assert "x-extrapolation-intervention" not in response.headers
    said = b": x-extrapolation-intervention: rate=0.15; positions=2\n\n"
    assert response.content == b'data: {"a": 1}\n\ndata: [DONE]\n\n' + said


def test_a_client_that_leaves_leaves_nothing_in_the_engine():
    engine, metrics = Engine([0.5]), Metrics(CollectorRegistry())

    async def leaving(scope, receive, send):
        await receive()
        raise asyncio.CancelledError

    async def receive():
        return {"type": "http.request", "body": json.dumps({"extrapolation": GATE}).encode()}

    async def send(message):
        raise AssertionError("nobody is there")

    middleware = ExtrapolationMiddleware(leaving, served=SERVED, rates=engine, metrics=metrics)
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}

    async def run():
        await middleware(scope, receive, send)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())
    assert len(engine.asked) == 1
