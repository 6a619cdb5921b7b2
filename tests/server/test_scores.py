"""Texts of tokens, gates and traces: the parts of scoring that need no engine."""

import asyncio
import json

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rlvr_decode.params import Extrapolation
from rlvr_decode.server.scores import ScoredToken, acts, texts
from rlvr_decode.server.trace import TraceMiddleware, gate_of, without_trace
from rlvr_decode.testing import byte_tokenizer


@pytest.mark.parametrize("text", ["517+486=?\n", "naïve Δ, 数学 🙂!", "é", "\t ", "�"])
def test_the_texts_of_tokens_make_the_text(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    found = list(texts(tokenizer, ids))
    assert "".join(piece for piece, _ in found) == text
    assert [offset for piece, offset in found if piece] == [
        len(text[:i].encode()) for i in range(len(text))
    ]


def test_a_character_of_several_tokens_belongs_to_the_last():
    tokenizer = byte_tokenizer()
    ids = tokenizer("aé", add_special_tokens=False)["input_ids"]
    assert list(texts(tokenizer, ids)) == [("a", 0), ("", 1), ("é", 1)]


def test_a_tokenizer_that_treats_the_first_token_apart_keeps_its_spaces():
    vocabulary = {"▁a": 0, "b": 1, "▁c": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="b"))
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    ids = [0, 1, 2, 0]
    assert list(texts(fast, ids)) == [("a", 0), ("b", 1), (" c", 2), (" a", 4)]
    assert fast.decode(ids) == "ab c a"


def test_half_a_character_at_the_end_is_shown_as_such():
    tokenizer = byte_tokenizer()
    ids = tokenizer("é", add_special_tokens=False)["input_ids"][:1]
    assert list(texts(tokenizer, ids)) == [("\N{REPLACEMENT CHARACTER}", 0)]


def test_what_a_gate_does_to_a_token():
    delta = Extrapolation(gate="delta", threshold=-0.3)
    assert [acts(delta, value, 0.5) for value in (-0.4, -0.3, -0.2)] == [True, True, False]
    kl = Extrapolation(gate="kl", threshold=0.1)
    assert [acts(kl, 0.0, rate) for rate in (0.0, 1.0)] == [False, True]
    assert acts(Extrapolation(gate="random", threshold=0.4), -9.0, 0.4) is None


@pytest.mark.parametrize(
    "settings",
    [
        Extrapolation(),
        Extrapolation(strength=0.5, gate="delta", threshold=-0.25, primary="base"),
        Extrapolation(gate="kl", threshold=0.125),
        Extrapolation(gate="all", primary="base"),
    ],
)
def test_the_gate_is_read_back_from_the_header(settings):
    found = gate_of(str(settings))
    assert (found.gate, found.threshold) == (settings.gate, settings.threshold)
    assert found.primary == settings.primary


class FakeVllm:
    """Answers as vLLM does when asked for token ids: prompt 1, 2, and tokens 3, 4 (and 5)."""

    def __init__(self, *, status=200):
        self.status = status
        self.bodies = []

    async def answer(self, request):
        body = await request.json()
        self.bodies.append(body)
        headers = {"x-extrapolation": "strength=1; plausibility=0; gate=none"}
        if self.status != 200:
            return JSONResponse({"error": {"code": self.status}}, self.status, headers)
        if body.get("stream"):
            return StreamingResponse(self.chunks(), media_type="text/event-stream", headers=headers)
        choices = [
            {"index": 0, "text": "ab", "prompt_token_ids": [1, 2], "token_ids": [3, 4]},
            {"index": 1, "text": "c", "prompt_token_ids": [1, 2], "token_ids": [5]},
        ]
        return JSONResponse({"id": "x", "choices": choices}, headers=headers)

    async def chunks(self):
        def chunk(index, token_ids, **more):
            choice = {"index": index, "text": "t", "token_ids": token_ids, **more}
            return f"data: {json.dumps({'id': 'x', 'choices': [choice]})}\n\n"

        yield chunk(0, [3], prompt_token_ids=[1, 2])
        # Events may be cut anywhere on their way.
        both = chunk(1, [5], prompt_token_ids=[1, 2]) + chunk(0, [4])
        yield both[:30]
        yield both[30:]
        yield "data: [DONE]\n\n"


async def score_by_id(token_ids, gate):
    return [
        ScoredToken(token_id=token_id, text="", offset=0, delta=token_id / 8)
        for token_id in token_ids
    ]


def ask(vllm, content, path="/v1/completions"):
    app = Starlette(routes=[Route(path, vllm.answer, methods=["POST"])])
    app.add_middleware(TraceMiddleware, score=score_by_id)

    async def send() -> Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            return await client.post(path, content=data)

    return asyncio.run(send())


def ids(tokens):
    assert [token["delta"] for token in tokens] == [token["token_id"] / 8 for token in tokens]
    return [token["token_id"] for token in tokens]


def test_an_answer_gets_its_tokens_choice_by_choice():
    vllm = FakeVllm()
    response = ask(vllm, {"prompt": "p", "extrapolation": {"strength": 1, "trace": True}})
    assert vllm.bodies == [
        {"prompt": "p", "extrapolation": {"strength": 1}, "return_token_ids": True}
    ]
    first, second = response.json()["choices"]
    assert ids(first["extrapolation_trace"]) == [3, 4]
    assert ids(second["extrapolation_trace"]) == [5]
    assert int(response.headers["content-length"]) == len(response.content)


def test_a_stream_gets_them_before_its_end():
    response = ask(FakeVllm(), {"stream": True, "extrapolation": {"trace": True}})
    *events, end = [event for event in response.text.split("\n\n") if event]
    assert end == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [chunk["choices"][0]["index"] for chunk in chunks[:-1]] == [0, 1, 0]
    assert chunks[-1]["choices"] == [] and chunks[-1]["id"] == "x"
    traces = [(each["index"], ids(each["tokens"])) for each in chunks[-1]["extrapolation_trace"]]
    assert traces == [(0, [3, 4]), (1, [5])]


@pytest.mark.parametrize(
    "body",
    [
        b"{not json",
        b'["trace"]',
        b'{"extrapolation":  0.5, "prompt": "the \\"trace\\""}',
        b'{"extrapolation": {"strength": 1}, "user": "trace"}',
    ],
)
def test_a_body_that_asks_for_no_trace_is_untouched(body):
    assert without_trace(body) == (body, False)


def test_no_trace_may_be_asked_for():
    body, traced = without_trace(b'{"extrapolation": {"strength": 1, "trace": false}}')
    assert (json.loads(body), traced) == ({"extrapolation": {"strength": 1}}, False)


@pytest.mark.parametrize("value", [1, "true", None, []])
def test_a_trace_is_true_or_false(value):
    response = ask(FakeVllm(), {"extrapolation": {"trace": value}})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "extrapolation.trace"


def test_keys_that_come_twice_are_refused():
    response = ask(FakeVllm(), b'{"extrapolation": {"trace": true, "trace": true}}')
    assert response.json()["error"]["param"] == "trace"


def test_a_refusal_passes_as_it_is():
    response = ask(FakeVllm(status=404), {"extrapolation": {"trace": True}})
    assert response.status_code == 404 and response.json() == {"error": {"code": 404}}
