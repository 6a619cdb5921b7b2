"""What one request may bring and ask for, and what is said to more."""

import asyncio
import json
from functools import partial
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from vllm.entrypoints.launchers.app import build_app

from rlvr_decode.params import Extrapolation, SettingError
from rlvr_decode.server import app as server
from rlvr_decode.server.arguments import parse
from rlvr_decode.server.engine import bound_queue
from rlvr_decode.server.heads import protocol_for
from rlvr_decode.server.limits import BodyLimit, HeaderLimit, Limits, limits_from
from rlvr_decode.server.request import ROUTES, Served, translate
from rlvr_decode.server.sequences import refuse_too_many

SMALL = Limits(max_body_bytes=100, max_header_bytes=300, max_headers=5)
# httpx sends six headers of its own.
SHORT = Limits(max_body_bytes=100, max_header_bytes=300)
ENVELOPE = {"message", "type", "param", "code"}


class Arrived:
    """An app that answers with the length of the body that it got."""

    def __init__(self):
        self.bodies = []

    async def __call__(self, scope, receive, send):
        message = await receive()
        assert not (message["body"] and message["more_body"]), "in one piece"
        self.bodies.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(len(message["body"])).encode()})


def ask(app, method="POST", /, **request):
    async def send():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, "/v1/completions", **request)

    return asyncio.run(send())


def assert_refused(response, status, param, words):
    assert response.status_code == status
    error = response.json()["error"]
    assert error.keys() == ENVELOPE and error["code"] == status
    assert error["param"] == param and words in error["message"]


def chunks(*sizes):
    async def stream():
        for size in sizes:
            yield b"x" * size

    return stream()


def test_a_body_is_passed_on_up_to_its_limit_and_not_beyond():
    app = Arrived()
    limited = BodyLimit(app, limits=SMALL)
    assert ask(limited, content=b"x" * 100).text == "100"
    assert ask(limited, content=chunks(40, 60)).text == "100"
    assert_refused(ask(limited, content=b"x" * 101), 413, "body", "101 bytes: at most 100 bytes")
    assert_refused(ask(limited, content=chunks(40, 61)), 413, "body", "at most 100 bytes")
    assert app.bodies == [b"x" * 100] * 2


def test_a_body_without_a_length_is_not_read_beyond_its_limit():
    read = []

    async def receive():
        read.append(40)
        return {"type": "http.request", "body": b"x" * 40, "more_body": True}

    answer = run(BodyLimit(Arrived(), limits=SMALL), headers=[], receive=receive)
    assert answer[0]["status"] == 413
    assert read == [40, 40, 40]


def test_a_body_that_comes_too_slowly_is_given_up():
    app, sent = Arrived(), []
    coming = iter([{"type": "http.request", "body": b"x", "more_body": True}])

    async def receive():
        return next(coming, None) or await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    limits = Limits(max_body_seconds=1)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(BodyLimit(app, limits=limits)(scope, receive, send))
    assert sent[0]["status"] == 408 and not app.bodies
    error = json.loads(sent[1]["body"])["error"]
    assert error["type"] == "RequestTimeoutError" and "within 1 s" in error["message"]


def test_a_body_that_is_announced_too_long_is_not_read_at_all():
    async def receive():
        raise AssertionError("read")

    headers = [(b"content-length", b"101")]
    answer = run(BodyLimit(Arrived(), limits=SMALL), headers=headers, receive=receive)
    assert answer[0]["status"] == 413


def run(app, *, headers, receive):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    asyncio.run(app(scope, receive, send))
    return sent


def test_headers_have_a_number_and_a_size():
    get = partial(ask, HeaderLimit(Arrived(), limits=SMALL), "GET")
    plain = {"host": "a", "accept": "b", "accept-encoding": "c", "connection": "d"}
    assert get(headers=plain | {"user-agent": "e"}).status_code == 200
    many = plain | {f"x-{i}": "1" for i in range(9)}
    assert_refused(get(headers=many), 431, "headers", "at most 5 (--max-headers)")
    long = plain | {"user-agent": "a" * 300}
    assert_refused(get(headers=long), 431, "headers", "at most 300 (--max-header-bytes)")
    assert_refused(get(params={"q": "a" * 300}), 431, "headers", "bytes of headers")


async def _talk(sent, *, protocol):
    """What uvicorn with this parser says to some bytes, until it closes the connection."""
    config = uvicorn.Config(Arrived(), port=0, http=protocol, lifespan="off", log_config=None)
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve())
    while not running.started:
        await asyncio.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in sent:
            writer.write(part)
            await asyncio.sleep(0)
        return await asyncio.wait_for(reader.read(), timeout=5)
    finally:
        writer.close()
        running.should_exit = True
        await task


def refused_by_uvicorn(*sent):
    answer = asyncio.run(_talk(sent, protocol=protocol_for(1000)))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], json.loads(body)["error"]


def test_headers_that_never_end_end_the_connection():
    endless = (b"POST / HTTP/1.1\r\nx: ", *(b"a" * 600 for _ in range(2)))
    status, error = refused_by_uvicorn(*endless)
    assert status == b"HTTP/1.1 431 Headers Too Large"
    assert error.keys() == ENVELOPE and error["param"] == "headers"


def test_headers_that_come_too_slowly_end_the_connection():
    slow = protocol_for(1000, head_seconds=0.1)
    for begun in (b"", b"POST / HTTP/1.1\r\nx: "):
        assert asyncio.run(_talk([begun], protocol=slow)) == b""
    # A second request on the same connection has its own time; a body may take longer.
    whole = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"
    answer = asyncio.run(_talk([whole, b"POST / HT"], protocol=slow))
    assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1") == 1


def test_what_is_not_http_is_refused_in_the_envelope():
    status, error = refused_by_uvicorn(b"\x16\x03\x01 nonsense\r\n\r\n")
    assert status == b"HTTP/1.1 400 Bad Request"
    assert error.keys() == ENVELOPE and error["code"] == 400


def test_a_long_body_behind_short_headers_is_not_mistaken_for_headers():
    body = b"x" * 5000
    head = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 5000\r\n\r\n"
    # Arrived wants its body in one piece, as BodyLimit gives it.
    answer = asyncio.run(_talk([head + body], protocol=protocol_for(1000)))
    assert answer.startswith(b"HTTP/1.1 200") and b"\r\n5000\r\n" in answer


@pytest.mark.parametrize(
    ("request_", "holder", "param"),
    [
        ({"n": 9}, None, "n"),
        ({"n": "9"}, None, "n"),
        ({"n": 9.0}, None, "n"),
        ({"n": 3, "prompt": ["a", "b", "c"]}, None, "prompt"),
        ({"n": 2, "prompt": [[1, 2]] * 5}, None, "prompt"),
        ({"prompt": ["a"] * 9}, None, "prompt"),
        ({"messages": [[{"role": "user"}]] * 9}, None, "messages"),
        ({"items": ["a"] * 9}, None, "items"),
        ({"token_ids": [1], "sampling_params": {"n": 9}}, {"n": 9}, "n"),
    ],
)
def test_more_sequences_than_the_limit_are_refused_by_place(request_, holder, param):
    with pytest.raises(SettingError, match="at most 8") as refused:
        refuse_too_many(request_, holder or request_, 8)
    assert refused.value.name == param


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"n": 8},
        {"n": None, "prompt": "a" * 100},
        {"n": 1, "prompt": [1] * 100},
        {"n": 2, "prompt": [[1] * 100] * 4},
        {"n": 8, "messages": [{"role": "user", "content": "a"}] * 9},
        {"n": "many"},
        {"n": float("inf")},
        {"prompt": []},
    ],
)
def test_as_many_sequences_as_the_limit_pass_and_nonsense_is_left_to_vllm(request_):
    refuse_too_many(request_, request_, 8)


def test_the_limit_on_sequences_holds_for_every_route_with_the_field():
    served = Served(names=("tiny",), defaults=Extrapolation(), max_sequences=4)
    for route in ROUTES.values():
        said = {"n": 5}
        for key in reversed(route.carrier[:-1]):
            said = {key: said}
        with pytest.raises(SettingError, match="n=5"):
            translate(json.dumps({"model": "tiny"} | said).encode(), route, served)


def test_the_command_line_sets_the_limits(monkeypatch):
    assert limits_from(parse(["tiny"]).args, queue=10**6) == Limits()
    flags = ["--max-body-bytes", "7", "--max-headers", "8", "--max-sequences", "9"]
    chosen = limits_from(parse(["tiny", *flags]).args, queue=10**6)
    assert chosen == Limits(max_body_bytes=7, max_headers=8, max_sequences=9)
    monkeypatch.setenv("VLLM_MAX_N_SEQUENCES", "33")
    assert limits_from(parse(["tiny"]).args, queue=10**6).max_sequences == 33


def test_no_request_may_ask_for_more_than_the_queue_will_ever_hold():
    assert limits_from(parse(["tiny"]).args, queue=5).max_sequences == 5


def queues(**said):
    """What the queue's bounds are for 16 slots on each of 2 replicas."""
    scheduler = SimpleNamespace(max_num_seqs=16, max_num_batched_tokens=100)
    scheduler.max_num_queued_reqs = said.get("requests")
    scheduler.max_num_queued_tokens = said.get("tokens")
    parallel = SimpleNamespace(data_parallel_size=2)
    bound_queue(SimpleNamespace(scheduler_config=scheduler, parallel_config=parallel))
    return scheduler.max_num_queued_reqs, scheduler.max_num_queued_tokens


def test_the_queue_is_bounded_unless_it_was_said_how():
    assert queues() == (64, 3200)
    assert queues(requests=5) == (5, 3200)
    assert queues(requests=0, tokens=0) == (0, 0)


def test_help_tells_the_limits_with_their_defaults(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--help=Limits"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for flag, default in {"body-bytes": 8388608, "header-bytes": 65536, "sequences": 128}.items():
        assert f"--max-{flag}" in told and f"(default: {default})" in told


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", ""])
def test_a_limit_is_a_whole_number_above_0(value, capsys):
    with pytest.raises(SystemExit):
        parse(["tiny", f"--max-headers={value}"])
    assert "is not a whole number above 0" in capsys.readouterr().err


def test_the_app_has_the_limits_behind_the_key():
    pair, _, args = parse(["tiny", "--api-key", "secret"])
    app = build_app(args, ("generate",))
    server.attach(app, pair, Served(names=("tiny",), defaults=Extrapolation()), SHORT)
    assert ask(app, content=b"x" * 101).status_code == 401
    key = {"authorization": "Bearer secret"}
    assert_refused(ask(app, content=b"x" * 101, headers=key), 413, "body", "101 bytes")
    assert_refused(ask(app, headers={"x": "a" * 300}), 431, "headers", "bytes of headers")
