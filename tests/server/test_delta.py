"""POST /v1/delta and traces on a real server, against transformers in fp64."""

import asyncio

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlvr_decode.pair import Pair

TEXT = "517+486=?\n7+6+0=13,1+8+1=10,5+4+1=10;1003"
CHAT = [{"role": "user", "content": "517+486=?"}, {"role": "assistant", "content": "1003"}]
VALUES = ("rlvr_logprob", "base_logprob", "delta", "rlvr_entropy", "base_entropy", "kl")


@pytest.fixture(scope="module")
def pair():
    return Pair.open("tiny")


@pytest.fixture(scope="module")
def tokenizer(pair):
    return AutoTokenizer.from_pretrained(pair.tokenizer_directory)


@pytest.fixture(scope="module")
def exact(pair):
    """log p of both models after each token but the last, fp64 [2, T − 1, V]: rlvr, base."""
    models = [
        AutoModelForCausalLM.from_pretrained(checkpoint.fetch(), dtype=torch.float64).eval()
        for checkpoint in (pair.rlvr, pair.base)
    ]

    @torch.no_grad()
    def logprobs(token_ids):
        tokens = torch.tensor([token_ids])
        return torch.stack([model(tokens).logits[0, :-1].log_softmax(-1) for model in models])

    return logprobs


def exact_values(exact, token_ids):
    rlvr, base = exact(token_ids)
    chosen = torch.tensor(token_ids[1:])[:, None]
    rlvr_logprob, base_logprob = (logp.gather(1, chosen)[:, 0] for logp in (rlvr, base))
    return {
        "rlvr_logprob": rlvr_logprob,
        "base_logprob": base_logprob,
        "delta": rlvr_logprob - base_logprob,
        "rlvr_entropy": -(rlvr.exp() * rlvr).sum(-1),
        "base_entropy": -(base.exp() * base).sum(-1),
        "kl": (rlvr.exp() * (rlvr - base)).sum(-1),
    }


def post(server, path="/v1/delta", **body):
    return httpx.post(server + path, json=body, timeout=60)


def check(exact, tokens):
    ids = [token["token_id"] for token in tokens]
    assert all(tokens[0][name] is None for name in VALUES)
    for name, expected in exact_values(exact, ids).items():
        assert [token[name] for token in tokens[1:]] == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_text_is_scored_as_transformers_would(server, exact, tokenizer):
    answer = post(server, model="tiny@0.5", input=TEXT, top=3).json()
    assert (answer["object"], answer["model"]) == ("delta", "tiny@0.5")
    tokens = answer["tokens"]
    assert [token["token_id"] for token in tokens] == tokenizer(TEXT)["input_ids"]
    check(exact, tokens)
    whole = "".join(token["text"] for token in tokens)
    assert whole == "<bos>" + TEXT
    for token in tokens:
        at = token["offset"]
        assert whole.encode()[at : at + len(token["text"].encode())] == token["text"].encode()


def test_alternatives_are_the_likeliest_of_either_model(server, exact):
    tokens = post(server, input=TEXT, top=3).json()["tokens"]
    rlvr, base = exact([token["token_id"] for token in tokens])
    for row, token in enumerate(tokens[1:]):
        found = {each["token_id"]: each for each in token["top"]}
        likeliest = {*rlvr[row].topk(3).indices.tolist(), *base[row].topk(3).indices.tolist()}
        assert found.keys() == likeliest
        for token_id, each in found.items():
            assert each["rlvr_logprob"] == pytest.approx(rlvr[row, token_id].item(), abs=1e-3)
            assert each["base_logprob"] == pytest.approx(base[row, token_id].item(), abs=1e-3)
        order = [each["rlvr_logprob"] for each in token["top"]]
        assert order == sorted(order, reverse=True)


def test_token_ids_are_scored_as_they_are(server, exact):
    ids = [26, 22, 28, 16, 25, 29, 27]
    answer = post(server, prompt=ids).json()
    assert [token["token_id"] for token in answer["tokens"]] == ids
    check(exact, answer["tokens"])
    assert "rate" not in answer["tokens"][1] and "top" not in answer["tokens"][1]


def test_one_token_has_no_context(server):
    [token] = post(server, input=[26]).json()["tokens"]
    assert token["text"] == "5" and token["delta"] is None


def test_a_chat_marks_the_response(server, exact, tokenizer):
    answer = post(server, messages=CHAT).json()
    check(exact, answer["tokens"])
    start = answer["response_start"]
    assert "".join(token["text"] for token in answer["tokens"][start:]) == "1003"
    prompt = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True)["input_ids"]
    assert [token["token_id"] for token in answer["tokens"][:start]] == prompt
    assert post(server, messages=CHAT[:1]).json()["response_start"] is None


def test_the_delta_gate_acts_where_rlvr_made_a_token_rarer(server):
    settings = {"gate": "delta", "threshold": -0.05, "primary": "base"}
    _, *tokens = post(server, input=TEXT, **settings).json()["tokens"]
    assert [token["acts"] for token in tokens] == [token["delta"] <= -0.05 for token in tokens]
    assert len({token["acts"] for token in tokens}) == 2
    assert all(0 <= token["rate"] <= 1 for token in tokens)


def test_a_gate_on_the_distribution_acts_all_or_nothing(server):
    _, *tokens = post(server, input=TEXT, gate="kl", threshold=0.05).json()["tokens"]
    assert [token["acts"] for token in tokens] == [token["kl"] >= 0.05 for token in tokens]
    assert {token["rate"] for token in tokens} == {0.0, 1.0}


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({}, 400, "input", "exactly one"),
        ({"input": "a", "messages": CHAT}, 400, "input", "exactly one"),
        ({"input": ""}, 400, "input", "nothing to score"),
        ({"input": []}, 400, "input", "nothing to score"),
        ({"messages": []}, 400, "messages", "nothing to score"),
        ({"input": [99999]}, 400, "input", "below"),
        ({"input": [-1]}, 400, None, ""),
        ({"input": [True]}, 400, None, ""),
        ({"input": "7+" * 3000}, 400, None, ""),
        ({"input": [26] * 3000}, 400, "tokens", "give fewer"),
        ({"input": "a", "gate": "sometimes"}, 400, "gate", "must be one of"),
        ({"input": "a", "gate": "delta"}, 400, "threshold", "needs a number"),
        ({"input": "a", "threshold": 1}, 400, "threshold", "leave it out"),
        ({"input": "a", "top": 21}, 400, None, "20"),
        ({"input": "a", "temprature": 1}, 400, None, "temprature"),
        ({"input": "a", "model": "other"}, 404, "model", "does not exist"),
        ({"messages": [3]}, 400, None, ""),
    ],
)
def test_what_cannot_be_scored_is_refused_in_openais_envelope(server, body, status, param, message):
    response = post(server, **body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, status)
    assert param is None or error["param"] == param
    assert message in error["message"]


def test_the_route_is_in_the_schema_with_its_types(server):
    schema = httpx.get(f"{server}/openapi.json", timeout=60).json()
    route = schema["paths"]["/v1/delta"]["post"]
    body = route["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert body.endswith("/DeltaRequest")
    answer = route["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert answer.endswith("/DeltaResponse")
    token = schema["components"]["schemas"]["ScoredToken"]["properties"]
    assert set(VALUES) <= token.keys()
    assert "/v1/delta" in httpx.get(f"{server}/v1/pair").json()["routes"]


def test_scores_and_completions_at_once_are_those_alone(server):
    texts = [TEXT[:end] for end in range(12, len(TEXT), 3)]
    alone = [post(server, input=text).json() for text in texts]

    async def together():
        async with httpx.AsyncClient(base_url=server, timeout=60) as client:
            body = {"model": "tiny@2", "prompt": TEXT[:10], "max_tokens": 30}
            asked = [client.post("/v1/completions", json=body) for _ in texts]
            asked += [client.post("/v1/delta", json={"input": text}) for text in texts]
            return [answer.json() for answer in await asyncio.gather(*asked)][len(texts) :]

    for one, other in zip(alone, asyncio.run(together()), strict=True):
        for a, b in zip(one["tokens"][1:], other["tokens"][1:], strict=True):
            assert a["delta"] == pytest.approx(b["delta"], abs=1e-4)


def traced(server, stream=False, **body):
    request = {"model": "tiny", "temperature": 0, "max_tokens": 20, "prompt": TEXT[:10]} | body
    settings = {"strength": 1, "gate": "delta", "threshold": 0.1, "trace": True}
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        create = client.chat.completions if "messages" in body else client.completions
        if "messages" in body:
            del request["prompt"]
        answer = create.create(**request, stream=stream, extra_body={"extrapolation": settings})
        return list(answer) if stream else answer


def test_a_completion_brings_the_scores_of_its_tokens(server, exact):
    choice = traced(server).choices[0]
    trace = choice.extrapolation_trace
    assert "".join(token["text"] for token in trace) == choice.text
    assert trace[0]["offset"] == 0
    ids = [*choice.prompt_token_ids, *choice.token_ids]
    expected = exact_values(exact, ids)["delta"][len(choice.prompt_token_ids) - 1 :]
    assert [token["delta"] for token in trace] == pytest.approx(expected.tolist(), abs=1e-3)
    assert [token["acts"] for token in trace] == [token["delta"] <= 0.1 for token in trace]


def test_a_chat_brings_them_too(server):
    choice = traced(server, messages=CHAT[:1]).choices[0]
    assert "".join(token["text"] for token in choice.extrapolation_trace) == choice.message.content


def test_a_stream_brings_them_at_its_end(server):
    whole = traced(server).choices[0]
    *chunks, last = traced(server, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    [trace] = last.extrapolation_trace
    assert (last.choices, trace["index"]) == ([], 0)
    deltas = [token["delta"] for token in trace["tokens"]]
    assert deltas == pytest.approx([t["delta"] for t in whole.extrapolation_trace], abs=1e-4)


def test_a_trace_where_there_can_be_none_is_refused(server):
    body = {"model": "tiny", "input": "1+1=?", "extrapolation": {"trace": True}}
    response = post(server, "/v1/responses", **body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "extrapolation.trace"
