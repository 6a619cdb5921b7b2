"""The middleware in front of a fake app that answers with the request as it arrived."""

import asyncio
import json
import math
from collections.abc import AsyncIterator

import httpx
import pytest
from prometheus_client import CollectorRegistry

from rlvr_decode.params import Extrapolation
from rlvr_decode.server.metrics import Metrics
from rlvr_decode.server.middleware import ExtrapolationMiddleware
from rlvr_decode.server.request import ROUTES, Served

DEFAULTS = Extrapolation(strength=1.0, plausibility=0.05)
SERVED = Served(names=("tiny",), defaults=DEFAULTS)

CHAT = "/v1/chat/completions"
# The routes whose settings travel in `vllm_xargs`.
XARGS_ROUTES = [path for path, route in ROUTES.items() if route.carrier == ("vllm_xargs",)]
EXTRAPOLATING = [path for path in XARGS_ROUTES if ROUTES[path].extrapolates]
RLVR_ONLY = [path for path, route in ROUTES.items() if not route.extrapolates]


async def echo(scope, receive, send):
    """An app that answers with the body it got and the length it was told."""
    body = b""
    while (message := await receive()).get("more_body") or not body:
        body += message["body"]
        if not message.get("more_body"):
            break
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    seen = {"body": body.decode("latin-1"), "headers": headers}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(seen).encode()})


async def no_rates(ticket):
    raise AssertionError("nobody asks without a gate")


def in_front_of(app, served=SERVED, rates=no_rates):
    metrics = Metrics(CollectorRegistry())
    return ExtrapolationMiddleware(app, served=served, rates=rates, metrics=metrics)


def ask(body, *, path=CHAT, served=SERVED, app=echo, root_path="", **request):
    """The response to one POST; `body` is JSON-encoded unless it is bytes already."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def post():
        transport = httpx.ASGITransport(in_front_of(app, served), root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"content-type": "application/json"} | request.pop("headers", {})
            return await client.request(
                request.pop("method", "POST"), path, content=content, headers=headers
            )

    return asyncio.run(post())


def arrived(response):
    """The body that reached the app."""
    assert response.status_code == 200, response.text
    return json.loads(response.json()["body"])


def xargs(strength=1.0, plausibility=0.05, gate="none"):
    return {
        "extrapolation_strength": strength,
        "extrapolation_plausibility": plausibility,
        "extrapolation_gate": gate,
    }


@pytest.mark.parametrize("path", EXTRAPOLATING)
def test_the_field_becomes_flat_xargs_on_every_route(path):
    response = ask({"model": "tiny", "prompt": "x", "extrapolation": 0.5}, path=path)
    assert arrived(response) == {"model": "tiny", "prompt": "x", "vllm_xargs": xargs(0.5)}
    assert response.headers["x-extrapolation"] == "strength=0.5; plausibility=0.05; gate=none"


def test_token_in_token_out_takes_the_field_into_its_sampling_params():
    body = {"token_ids": [1], "sampling_params": {"max_tokens": 4}, "extrapolation": 2}
    seen = arrived(ask(body, path="/inference/v1/generate"))
    expected = {"max_tokens": 4, "extra_args": xargs(2)}
    assert seen == {"token_ids": [1], "sampling_params": expected}


@pytest.mark.parametrize(
    ("said", "applied"),
    [
        ({}, xargs()),
        ({"extrapolation": None}, xargs()),
        ({"extrapolation": {}}, xargs()),
        ({"vllm_xargs": None}, xargs()),
        ({"extrapolation": 0}, xargs(0)),
        ({"extrapolation": -1}, xargs(-1)),
        ({"extrapolation": 10}, xargs(10)),
        ({"extrapolation": {"strength": 3}}, xargs(3)),
        ({"extrapolation": {"plausibility": 0}}, xargs(plausibility=0)),
        ({"extrapolation": {"strength": 2, "plausibility": 1, "gate": "none"}}, xargs(2, 1)),
        ({"model": "tiny@0.5"}, xargs(0.5)),
        ({"model": "tiny@-1"}, xargs(-1)),
        ({"model": "tiny@+2.5e-1"}, xargs(0.25)),
        ({"model": "tiny@.5"}, xargs(0.5)),
        ({"model": "tiny@rlvr"}, xargs(0)),
        ({"model": "tiny@base"}, xargs(-1)),
        ({"vllm_xargs": {"extrapolation_strength": 0.5}}, xargs(0.5)),
        # Two places may say the same, or speak of different settings.
        ({"model": "tiny@1", "extrapolation": 1.0}, xargs(1)),
        ({"model": "tiny@2", "extrapolation": {"plausibility": 0.5}}, xargs(2, 0.5)),
        ({"extrapolation": 2, "vllm_xargs": {"extrapolation_plausibility": 0.5}}, xargs(2, 0.5)),
        ({"extrapolation": 2, "vllm_xargs": {"extrapolation_strength": 2.0}}, xargs(2)),
    ],
)
def test_what_was_said_is_applied(said, applied):
    seen = arrived(ask({"model": "tiny"} | said))
    assert seen == {"model": "tiny", "vllm_xargs": applied}


def test_everything_else_in_the_body_arrives_unchanged():
    body = {
        "model": "tiny@0.5",
        "messages": [{"role": "user", "content": "ünï 🙂 \u2028"}],
        "seed": 2**62,
        "temperature": 0.1 + 0.2,
        "unknown": {"nested": [None, True]},
        "vllm_xargs": {"other_plugin": [1, "a"]},
    }
    seen = arrived(ask(body))
    assert seen["vllm_xargs"] == {"other_plugin": [1, "a"]} | xargs(0.5)
    assert {key: seen[key] for key in seen if key not in ("vllm_xargs", "model")} == {
        key: body[key] for key in body if key not in ("vllm_xargs", "model")
    }


def test_numbers_that_json_cannot_hold_reach_vllm_as_they_came():
    seen = arrived(ask(b'{"model": "tiny", "temperature": NaN, "top_p": 1e400}'))
    assert math.isnan(seen["temperature"]) and seen["top_p"] == math.inf


def test_the_length_told_is_that_of_the_new_body():
    response = ask({"model": "tiny", "extrapolation": 0.5})
    seen = response.json()
    assert int(seen["headers"]["content-length"]) == len(seen["body"].encode("latin-1"))


def test_a_body_in_pieces_is_put_together():
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b'{"model": "tiny", "extra', b'polation": 0', b".5}"):
            yield piece

    async def post():
        transport = httpx.ASGITransport(in_front_of(echo))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(CHAT, content=pieces())

    response = asyncio.run(post())
    assert arrived(response)["vllm_xargs"] == xargs(0.5)
    assert "transfer-encoding" not in response.json()["headers"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_encoding_that_json_allows_is_read(encoding):
    body = '{"model": "tiny", "user": "ü", "extrapolation": 0.5}'.encode(encoding)
    headers = {"content-type": f"application/json; charset={encoding}"}
    seen = arrived(ask(body, headers=headers))
    assert seen == {"model": "tiny", "user": "ü", "vllm_xargs": xargs(0.5)}


@pytest.mark.parametrize("model", [{}, {"model": None}, {"model": ""}])
def test_a_request_without_a_model_is_for_the_pair(model):
    assert arrived(ask(model | {"extrapolation": 0.5})) == model | {"vllm_xargs": xargs(0.5)}


def test_an_alias_keeps_its_name_and_a_name_may_hold_an_at_sign():
    served = Served(names=("tiny", "lab@home", "lab"), defaults=DEFAULTS)
    for model, plain in (("lab@home@2", "lab@home"), ("lab@2", "lab"), ("tiny@2", "tiny")):
        seen = arrived(ask({"model": model}, served=served))
        assert seen == {"model": plain, "vllm_xargs": xargs(2.0)}


def test_the_prefix_of_a_proxy_is_not_part_of_the_route():
    seen = arrived(ask({"extrapolation": 0.5}, path="/api" + CHAT, root_path="/api"))
    assert seen == {"vllm_xargs": xargs(0.5)}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b'{"model": "tiny", "extrapolation": 0.5',
        b"\xff\xfe\xff",
        b"[]",
        b"0.5",
        b"null",
        b'{"model": 5, "extrapolation": 9}',
        b'{"model": "other@0.5"}',
        b'{"model": "other", "extrapolation": 0.5}',
        b'{"model": "tinyx"}',
        # Compressed, which vLLM does not read either.
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    ],
)
def test_what_vllm_refuses_itself_arrives_byte_for_byte(body):
    response = ask(body)
    assert response.status_code == 200
    assert response.json()["body"].encode("latin-1") == body
    assert "x-extrapolation" not in response.headers


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/tokenize"), ("POST", CHAT + "/"), ("GET", CHAT), ("PUT", CHAT), ("POST", "/apiv1")],
)
def test_other_routes_and_methods_are_not_read(method, path):
    body = b'{"extrapolation": "anything"}'
    response = ask(body, path=path, method=method, root_path="/api" if path == "/apiv1" else "")
    assert response.json()["body"].encode() == body
    assert "x-extrapolation" not in response.headers


LONG = "9" * 5000
MALFORMED = [
    # body, the place that is named, what the message says
    ({"extrapolation": "0.5"}, "extrapolation", "'0.5': must be a number from -1 to 10"),
    ({"extrapolation": True}, "extrapolation", "True: must be a number"),
    ({"extrapolation": False}, "extrapolation", "False: must be a number"),
    ({"extrapolation": [0.5]}, "extrapolation", "[0.5]: must be a number"),
    ({"extrapolation": 10.1}, "extrapolation", "10.1: must be from -1 to 10"),
    ({"extrapolation": -1.0001}, "extrapolation", "must be from -1 to 10"),
    ({"extrapolation": 10**400}, "extrapolation", "must be from -1 to 10"),
    ({"extrapolation": math.nan}, "extrapolation", "nan: must be from -1 to 10"),
    ({"extrapolation": math.inf}, "extrapolation", "inf: must be from -1 to 10"),
    ({"extrapolation": -math.inf}, "extrapolation", "-inf: must be from -1 to 10"),
    (b'{"extrapolation": 1e400}', "extrapolation", "inf: must be from -1 to 10"),
    (b'{"extrapolation": 0.5, "extrapolation": 1}', "extrapolation", "given twice"),
    (b'{"extrapolation": 1, "extrapolation": 1}', "extrapolation", "given twice"),
    (b'{"extrapolation": {"strength": 1, "strength": 2}}', "extrapolation.strength", "twice"),
    (b'{"model": "tiny@1", "model": "tiny@2"}', "model", "given twice"),
    ({"extrapolation": {"strength": None}}, "extrapolation.strength", "None: must be a number"),
    ({"extrapolation": {"strength": "1"}}, "extrapolation.strength", "'1': must be a number"),
    ({"extrapolation": {"strength": {}}}, "extrapolation.strength", "{}: must be a number"),
    ({"extrapolation": {"strenght": 1}}, "extrapolation.strenght", "known: strength, "),
    ({"extrapolation": {"": 1}}, "extrapolation.", "unknown setting"),
    ({"extrapolation": {"plausibility": 1.5}}, "extrapolation.plausibility", "from 0 to 1"),
    ({"extrapolation": {"plausibility": True}}, "extrapolation.plausibility", "from 0 to 1"),
    ({"extrapolation": {"gate": "maybe"}}, "extrapolation.gate", "'maybe': must be one of none"),
    ({"extrapolation": {"gate": 1}}, "extrapolation.gate", "must be one of"),
    ({"extrapolation": {"gate": ["none"]}}, "extrapolation.gate", "must be one of"),
    ({"model": "tiny@"}, "model", "tiny@rlvr"),
    ({"model": "tiny@nan"}, "model", "tiny@<strength>"),
    ({"model": "tiny@inf"}, "model", "tiny@<strength>"),
    ({"model": "tiny@Base"}, "model", "tiny@base"),
    ({"model": "tiny@ 0.5"}, "model", "tiny@<strength>"),
    ({"model": "tiny@1_0"}, "model", "tiny@<strength>"),
    ({"model": "tiny@٣"}, "model", "tiny@<strength>"),
    ({"model": "tiny@0.5@0.5"}, "model", "tiny@<strength>"),
    ({"model": "tiny@11"}, "model", "11.0: must be from -1 to 10"),
    ({"model": "tiny@1e400"}, "model", "inf: must be from -1 to 10"),
    ({"vllm_xargs": [0.5]}, "vllm_xargs", "must be an object"),
    ({"vllm_xargs": "extrapolation_strength=1"}, "vllm_xargs", "must be an object"),
    ({"model": "tiny@0.5", "extrapolation": 1}, "extrapolation", "with model, which says 0.5"),
    ({"model": "tiny@base", "extrapolation": 0}, "extrapolation", "disagrees with model"),
    ({"extrapolation": 1, "vllm_xargs": {"extrapolation_strength": 2}},
     "vllm_xargs.extrapolation_strength", "disagrees with extrapolation, which says 1"),
]  # fmt: skip
MALFORMED_XARGS = [
    ("strength", True, "must be a number"),
    ("strength", "nan", "must be a number"),
    ("strength", "0.5", "must be a number"),
    ("strength", math.nan, "must be from -1 to 10"),
    ("strength", 99, "must be from -1 to 10"),
    ("strength", None, "must be a number"),
    ("strength", [0.5], "must be a number"),
    ("strength", {"strength": 1}, "must be a number"),
    ("plausibility", -0.1, "must be from 0 to 1"),
    ("gate", "maybe", "must be one of none"),
    ("strenght", 1, "unknown setting"),
    ("", 1, "unknown setting"),
]


def assert_refused(response, param, words):
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == ("BadRequestError", 400, param)
    assert error["message"].startswith(param + "=") and words in error["message"]


@pytest.mark.parametrize("path", XARGS_ROUTES)
@pytest.mark.parametrize(("body", "param", "words"), MALFORMED)
def test_malformed_requests_are_refused_by_name_on_every_route(path, body, param, words):
    assert_refused(ask(body, path=path, app=never), param, words)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(("setting", "value", "words"), MALFORMED_XARGS)
def test_malformed_xargs_are_refused_by_name_on_every_route(path, setting, value, words):
    carrier = ROUTES[path].carrier
    body = {f"extrapolation_{setting}": value}
    for key in reversed(carrier):
        body = {key: body}
    param = ".".join((*carrier, f"extrapolation_{setting}"))
    assert_refused(ask(body, path=path, app=never), param, words)


def test_a_bare_extrapolation_among_the_xargs_is_refused():
    response = ask({"vllm_xargs": {"extrapolation": 0.5}}, app=never)
    assert_refused(response, "vllm_xargs.extrapolation", "unknown setting")


def test_xargs_given_twice_are_refused():
    body = b'{"vllm_xargs": {"extrapolation_strength": 1, "extrapolation_strength": 2}}'
    assert_refused(ask(body, app=never), "vllm_xargs.extrapolation_strength", "given twice")
    body = b'{"vllm_xargs": {"extrapolation_strength": 1}, "vllm_xargs": {}}'
    assert_refused(ask(body, app=never), "vllm_xargs", "given twice")


def test_a_value_of_any_length_gets_a_short_answer():
    for value in ("x" * 10**6, int(LONG[:4000]), [[1] * 10**5]):
        response = ask({"extrapolation": value}, app=never)
        assert response.status_code == 400
        assert len(response.text) < 400


def test_a_name_of_any_kind_gets_an_answer():
    assert_refused(ask({"extrapolation": {"\ud800": 1}}, app=never), r"extrapolation.\ud800", "")
    response = ask({"extrapolation": {"x" * 10**6: 1}}, app=never)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("extrapolation.xxx")
    assert len(response.text) < 1200


UNSENDABLE = [
    ({"structured_outputs": []}, "structured_outputs", "must be an object"),
    ({"structured_outputs": "regex"}, "structured_outputs", "must be an object"),
    ({"structured_outputs": False}, "structured_outputs", "must be an object"),
    ({"stream_interval": 2**64}, "stream_interval", "must fit into 64 bits"),
    ({"logit_bias": {"5": -(2**63) - 1}}, "logit_bias.5", "must fit into 64 bits"),
    ({"stop": "\ud800"}, "stop", "half of a surrogate pair"),
    ({"stop": ["a", "b\udfff"]}, "stop[1]", "half of a surrogate pair"),
    ({"messages": [{"role": "user", "content": "\udc00"}]}, "messages[0].content", "half of"),
    ({"metadata": {"\ud800": 1}}, "metadata", "half of a surrogate pair"),
]


@pytest.mark.parametrize(("body", "param", "words"), UNSENDABLE)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses/render"])
def test_what_no_engine_could_be_told_is_refused_by_place(path, body, param, words):
    assert_refused(ask({"model": "tiny"} | body, path=path, app=never), param, words)


def test_what_only_looks_unsendable_arrives():
    body = {"prompt": "🙂\\ud800", "seed": 2**64 - 1, "a": -(2**63), "b": 1e300, "c": "9" * 30}
    assert {**arrived(ask(body)), "vllm_xargs": None} == body | {"vllm_xargs": None}
    assert arrived(ask({"structured_outputs": {"regex": "a"}}))["structured_outputs"]


def test_nesting_too_deep_to_read_is_refused():
    body = b'{"extrapolation": 9, "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert_refused(ask(body, app=never), "body", "nested too deeply")


@pytest.mark.parametrize("path", RLVR_ONLY)
def test_a_route_that_cannot_extrapolate_answers_for_rlvr_and_says_so(path):
    for body in ({}, {"model": "tiny"}, {"model": "tiny@rlvr"}, {"extrapolation": 0}):
        response = ask(body, path=path)
        assert arrived(response) == ({"model": "tiny"} if "model" in body else {})
        assert response.headers["x-extrapolation"].startswith("strength=0;")
    for body in ({"extrapolation": 1}, {"model": "tiny@base"}):
        assert_refused(ask(body, path=path, app=never), "extrapolation", "rlvr only")


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"use_beam_search": True}, "use_beam_search"),
        ({"use_beam_search": "yes"}, "use_beam_search"),
        ({"use_beam_search": 1}, "use_beam_search"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"prompt_logprobs": 5}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"echo": "true", "logprobs": True}, "echo"),
    ],
)
def test_what_would_answer_for_another_distribution_needs_strength_0(field, param):
    assert_refused(ask(field, app=never), param, "use strength 0")
    assert_refused(ask({"extrapolation": -1} | field, app=never), param, "use strength 0")
    assert arrived(ask({"extrapolation": 0} | field)) == field | {"vllm_xargs": xargs(0)}


@pytest.mark.parametrize(
    "field",
    [
        {"use_beam_search": False},
        {"use_beam_search": None},
        {"prompt_logprobs": None},
        {"echo": True},
        {"echo": True, "logprobs": None},
        {"echo": True, "logprobs": False},
        {"echo": False, "logprobs": 3},
        {"logprobs": True, "top_logprobs": 5},
    ],
)
def test_what_is_off_is_not_refused(field):
    assert arrived(ask(field)) == field | {"vllm_xargs": xargs()}


def test_prompt_logprobs_inside_sampling_params_are_seen():
    body = {"sampling_params": {"prompt_logprobs": 1}}
    response = ask(body, path="/inference/v1/generate", app=never)
    assert_refused(response, "prompt_logprobs", "use strength 0")


def test_token_in_token_out_without_sampling_params_is_left_to_vllm():
    body = {"token_ids": [1], "extrapolation": 0.5}
    assert arrived(ask(body, path="/inference/v1/generate")) == body


def test_a_field_this_engine_cannot_take_is_refused_with_the_reason():
    served = Served(names=("tiny",), defaults=DEFAULTS, refused={"seed": "not on this engine"})
    assert_refused(ask({"seed": 0}, served=served, app=never), "seed", "not on this engine")
    assert arrived(ask({"seed": None}, served=served))["seed"] is None


async def never(scope, receive, send):
    raise AssertionError("a refused request reached the app")


def scope(path=CHAT, body_length=0):
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(b"content-length", str(body_length).encode())],
    }


def converse(app, incoming):
    """What the middleware sends when the client sends `incoming`, then nothing."""
    sent = []

    async def receive():
        assert incoming, "asked for more than the client sends"
        return incoming.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(in_front_of(app)(scope(), receive, send))
    return sent


def test_a_stream_passes_piece_by_piece_with_the_header_first():
    async def stream(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        for piece in (b"data: 1\n\n", b"data: 2\n\n"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    body = b'{"stream": true, "extrapolation": 0.5}'
    start, *pieces = converse(stream, [{"type": "http.request", "body": body}])
    settings = b"strength=0.5; plausibility=0.05; gate=none"
    assert start["headers"] == [(b"a", b"b"), (b"x-extrapolation", settings)]
    assert [piece["body"] for piece in pieces] == [b"data: 1\n\n", b"data: 2\n\n", b""]


def test_the_app_sees_its_client_leave():
    seen = []

    async def waiting(scope, receive, send):
        seen.extend([await receive(), await receive()])

    converse(waiting, [{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}])
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect"]
    assert seen[0]["more_body"] is False


def test_a_client_that_leaves_before_its_body_is_complete_reaches_no_app():
    incoming = [
        {"type": "http.request", "body": b'{"extra', "more_body": True},
        {"type": "http.disconnect"},
    ]
    assert converse(never, incoming) == []


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_other_protocols_pass(kind):
    seen = []

    async def app(scope, receive, send):
        seen.append(scope)

    asyncio.run(in_front_of(app)({"type": kind, "path": CHAT}, None, None))
    assert seen == [{"type": kind, "path": CHAT}]


def test_concurrent_requests_keep_their_own_settings():
    async def post():
        transport = httpx.ASGITransport(in_front_of(echo))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            strengths = [i / 10 for i in range(-10, 100)]
            return strengths, await asyncio.gather(
                *(client.post(CHAT, json={"extrapolation": strength}) for strength in strengths)
            )

    for strength, response in zip(*asyncio.run(post()), strict=True):
        assert arrived(response)["vllm_xargs"]["extrapolation_strength"] == strength
        assert response.headers["x-extrapolation"].startswith(f"strength={strength:g};")
