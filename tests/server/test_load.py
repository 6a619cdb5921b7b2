"""A real server under more than it can take, and left alone by its clients: it stays exact."""

import asyncio
import contextlib
import time

import httpx
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlvr_decode import Extrapolation, Pair
from rlvr_decode.hf import generate

PROMPT = "517+486=?\n"
STRENGTH = 1.5
# Answers of 120 tokens take long enough to be overtaken, and to be left.
LONG = {"model": "tiny", "prompt": PROMPT, "max_tokens": 120, "ignore_eos": True}
GATED = {"gate": "delta", "threshold": -0.3, "strength": 0.5}
EMPTY = {"vllm:num_requests_running": 0, "vllm:num_requests_waiting": 0}
EMPTY |= {"vllm:kv_cache_usage_perc": 0}


@pytest.fixture(scope="module")
def exact():
    """What transformers says to the prompt, greedily, in float32."""
    pair = Pair.open("tiny")
    rlvr, base = (
        AutoModelForCausalLM.from_pretrained(each.fetch()).eval() for each in (pair.rlvr, pair.base)
    )
    tokenizer = AutoTokenizer.from_pretrained(pair.tokenizer_directory)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    said = generate(
        rlvr,
        base,
        prompt["input_ids"],
        Extrapolation(strength=STRENGTH, plausibility=0.05),
        max_new_tokens=40,
        do_sample=False,
    )
    return tokenizer.decode(said[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(autouse=True)
def exact_afterwards(server, exact):
    """After whatever a test did, the next request gets its exact answer."""
    yield
    body = {"model": f"tiny@{STRENGTH}", "prompt": PROMPT, "max_tokens": 40, "temperature": 0}
    answer = httpx.post(f"{server}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"] == exact


def metrics(server):
    """The values of /metrics by name, of all labels together."""
    values = {}
    for line in httpx.get(f"{server}/metrics").text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = name.partition("{")[0]
            values[name] = values.get(name, 0) + float(value)
    return values


def at_once(count, each):
    """`each(client, i)` for every i, all at the same time."""

    async def run():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=120) as client:
            return await asyncio.gather(*(each(client, i) for i in range(count)))

    return asyncio.run(run())


def assert_empty_within(server, seconds):
    end = time.monotonic() + seconds
    while True:
        asked = time.monotonic()
        found = metrics(server)
        if all(found[name] == value for name, value in EMPTY.items()):
            return
        assert asked < end, {name: found[name] for name in EMPTY}


def test_sixty_at_once_are_served_or_told_to_come_back(server):
    before = metrics(server)["vllm:admission_rejections_total"]

    async def ask(client, i):
        gate = GATED if i % 2 else {}
        body = LONG | {"extrapolation": {"strength": i / 20} | gate}
        return await client.post(f"{server}/v1/completions", json=body)

    answers = at_once(60, ask)
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503} and statuses.count(200) >= 32  # the queue's default
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) == 1
            error = answer.json()["error"]
            assert error.keys() == {"message", "type", "param", "code"} and error["code"] == 503
        else:
            assert answer.json()["usage"]["completion_tokens"] == 120
    refused = metrics(server)["vllm:admission_rejections_total"] - before
    assert refused == statuses.count(503)


def test_traces_of_admitted_answers_come_even_when_the_queue_is_full(server):
    async def ask(client, i):
        body = LONG | {"max_tokens": 20 + i, "extrapolation": {"strength": 1, "trace": True}}
        return await client.post(f"{server}/v1/completions", json=body)

    answers = at_once(60, ask)
    assert {answer.status_code for answer in answers} <= {200, 503}
    for answer in answers:
        if answer.status_code == 200:
            choice = answer.json()["choices"][0]
            assert len(choice["extrapolation_trace"]) == len(choice["token_ids"])


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_free_the_blocks_of_both_models_within_a_second(server, stream):
    async def leave(client, i):
        gate = GATED if i % 2 else {}
        body = LONG | {"stream": stream, "extrapolation": {"strength": 1} | gate}
        body |= {"n": 2, "temperature": 1} if i % 3 == 0 else {}
        try:
            request = client.stream("POST", f"{server}/v1/completions", json=body, timeout=0.5)
            async with request as answer:
                async for _ in answer.aiter_lines():
                    break
        except httpx.ReadTimeout:
            pass

    for _ in range(2):
        at_once(24, leave)
        assert_empty_within(server, 1)


def test_scoring_that_nobody_waits_for_is_dropped_too(server):
    async def leave(client, i):
        body = {"input": PROMPT * 20, "top": 5}
        with contextlib.suppress(httpx.TimeoutException):
            await client.post(f"{server}/v1/delta", json=body, timeout=0.01)

    at_once(24, leave)
    assert_empty_within(server, 1)


def test_too_much_of_anything_is_refused_in_the_envelope(server):
    def chunks():
        for _ in range(9):
            yield b" " * 2**20

    cases = [
        (413, "body", {"json": LONG | {"prompt": "1" * 9 * 2**20}}),
        (413, "body", {"content": chunks()}),
        (431, "headers", {"json": LONG, "headers": {"x-long": "a" * 66_000}}),
        (431, "headers", {"json": LONG, "headers": {f"x-{i}": "a" for i in range(200)}}),
        (400, "n", {"json": LONG | {"n": 129}}),
        (400, "prompt", {"json": LONG | {"n": 2, "prompt": ["a"] * 70}}),
    ]
    for status, param, request in cases:
        answer = httpx.post(f"{server}/v1/completions", **request, timeout=60)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["param"] == param


def test_refusals_strengths_and_gates_are_counted(server):
    before = metrics(server)
    httpx.get(f"{server}/v1/nothing")
    body = LONG | {"max_tokens": 2, "extrapolation": GATED}
    httpx.post(f"{server}/v1/completions", json=body, timeout=60)
    after = metrics(server)
    for name in ("refusals_total", "requests_total", "strength_count", "intervention_rate_count"):
        name = f"rlvr_decode_{name}"
        assert after[name] == before.get(name, 0) + 1, name
