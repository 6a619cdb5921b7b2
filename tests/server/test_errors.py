"""Refusals in OpenAI's envelope, whoever says them, and when to come back."""

import asyncio

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from vllm.entrypoints.launchers.app import build_app
from vllm.exceptions import QueueOverflowError

from rlvr_decode.params import Extrapolation
from rlvr_decode.server import app as server
from rlvr_decode.server.arguments import parse
from rlvr_decode.server.errors import ErrorMiddleware
from rlvr_decode.server.limits import Limits
from rlvr_decode.server.metrics import Metrics
from rlvr_decode.server.request import Served


def ask(app, method="GET", path="/", **request):
    async def send():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


def told(response):
    middleware = ErrorMiddleware(response, retry_after=7, metrics=Metrics(CollectorRegistry()))
    return ask(middleware)


@pytest.mark.parametrize(
    ("response", "message", "kind"),
    [
        (JSONResponse({"error": "Unauthorized"}, 401), "a key is asked for", "Authentication"),
        (JSONResponse({"detail": "Not Found"}, 404), "Not Found", "NotFound"),
        (JSONResponse({"detail": [{"msg": "x"}]}, 422), "Unprocessable", "Unprocessable"),
        (PlainTextResponse("no such host", 400), "no such host", "BadRequest"),
        (PlainTextResponse("Internal Server Error", 500), "Internal", "InternalServer"),
        (Response(status_code=503), "Service Unavailable", "ServiceUnavailable"),
        (Response(b"\xff\xfe", 405), "\ufffd", "MethodNotAllowed"),
        (JSONResponse(["a"], 418), "I'm a Teapot", "I'm a Teapot"),
    ],
)
def test_a_refusal_of_any_shape_gets_the_envelope(response, message, kind):
    answer = told(response)
    assert answer.status_code == response.status_code
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert message in error["message"] and error["type"].startswith(kind)
    assert error["code"] == response.status_code and error["param"] is None


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"message": "m", "type": "t", "param": "n", "code": 400}},
        {"type": "error", "error": {"type": "invalid_request_error", "message": "Anthropic's"}},
        {"message": "Cohere's"},
    ],
)
def test_an_envelope_is_left_as_it_is(said):
    answer = told(JSONResponse(said, 400, headers={"x-request-id": "7"}))
    assert answer.json() == said and answer.headers["x-request-id"] == "7"


def test_later_says_when_unless_it_was_said():
    for status in (429, 503):
        assert told(Response(status_code=status)).headers["retry-after"] == "7"
        known = Response(status_code=status, headers={"Retry-After": "99"})
        assert told(known).headers.get_list("retry-after") == ["99"]
    assert "retry-after" not in told(Response(status_code=500)).headers


def test_what_is_no_refusal_passes_piece_by_piece():
    async def pieces():
        yield b"data: 1\n\n"
        yield b"data: [DONE]\n\n"

    sent = []

    async def run():
        async def send(message):
            sent.append(message)

        async def receive():
            await asyncio.Event().wait()

        app = StreamingResponse(pieces(), media_type="text/event-stream")
        middleware = ErrorMiddleware(app, retry_after=1, metrics=Metrics(CollectorRegistry()))
        await middleware({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)

    asyncio.run(run())
    assert [each.get("body") for each in sent[1:]] == [b"data: 1\n\n", b"data: [DONE]\n\n", b""]


def test_a_refusal_in_pieces_is_put_together():
    async def pieces():
        yield b'{"det'
        yield b'ail": "no"}'

    assert told(StreamingResponse(pieces(), 404)).json()["error"]["message"] == "no"


def test_refusals_are_counted_by_status():
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for status in (404, 404, 503, 200):
        ask(ErrorMiddleware(Response(status_code=status), retry_after=1, metrics=metrics))
    counted = [
        registry.get_sample_value("rlvr_decode_refusals_total", {"status": status})
        for status in ("404", "503", "200")
    ]
    assert counted == [2, 1, None]


@pytest.fixture(scope="module")
def app():
    pair, _, args = parse(["tiny", "--api-key", "secret"])
    made = build_app(args, ("generate",))
    server.attach(made, pair, Served(names=("tiny",), defaults=Extrapolation()), Limits())

    @made.get("/v1/busy")
    async def busy():
        raise QueueOverflowError

    @made.get("/v1/broken")
    async def broken():
        raise KeyError("a bug")

    return made


KEY = {"authorization": "Bearer secret"}


@pytest.mark.parametrize(
    ("status", "method", "path", "headers"),
    [
        (401, "GET", "/v1/models", {}),
        (401, "GET", "/v1/models", {"authorization": "Bearer wrong"}),
        (404, "GET", "/v1/nothing", KEY),
        (405, "GET", "/v1/completions", KEY),
        (503, "GET", "/v1/busy", KEY),
        (500, "GET", "/v1/broken", KEY),
        (400, "POST", "/v1/completions", KEY | {"content-type": "application/json"}),
        (400, "OPTIONS", "/v1/models", {"origin": "a", "access-control-request-method": "X"}),
    ],
)
def test_every_refusal_of_the_app_has_the_envelope(app, status, method, path, headers):
    answer = ask(app, method, path, headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["code"] == status
    assert error["message"] and error["type"]
    assert ("retry-after" in answer.headers) is (status == 503)
