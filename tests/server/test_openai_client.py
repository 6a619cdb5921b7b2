"""The official client against a real server process with the bundled pair `tiny`."""

import asyncio
import json
import re
import time

import httpx
import openai
import pytest

PROMPT = "517+486=?\n"


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as made:
        yield made


def complete(client, model="tiny", *, prompt=PROMPT, extrapolation=None, **settings):
    """One greedy completion, with the header that says what was applied."""
    body = {} if extrapolation is None else {"extrapolation": extrapolation}
    settings = {"temperature": 0, "max_tokens": 40} | settings
    raw = client.completions.with_raw_response.create(
        model=model, prompt=prompt, extra_body=body | settings.pop("extra_body", {}), **settings
    )
    return raw.parse(), raw.headers["x-extrapolation"]


def test_the_pair_is_listed_under_its_three_names(client, server):
    assert [model.id for model in client.models.list()] == ["tiny", "tiny@rlvr", "tiny@base"]
    described = client.get("/pair", cast_to=object)
    assert described["name"] == "tiny" and described["refused"] == {}


def logprobs(client, model="tiny", **settings):
    answer, _ = complete(client, model, logprobs=3, max_tokens=12, **settings)
    return answer.choices[0].logprobs


def test_every_way_to_say_a_strength_gives_the_same_distribution(client):
    in_xargs = {"vllm_xargs": {"extrapolation_strength": 2.5}}
    ways = [
        logprobs(client, extrapolation=2.5),
        logprobs(client, extrapolation={"strength": 2.5}),
        logprobs(client, "tiny@2.5"),
        logprobs(client, extra_body=in_xargs),
    ]
    for way in ways[1:]:
        assert way.tokens == ways[0].tokens
        assert way.token_logprobs == pytest.approx(ways[0].token_logprobs, abs=1e-5)
    rlvr, base = logprobs(client, "tiny@rlvr"), logprobs(client, "tiny@base")
    assert max_gap(rlvr, base) > 0.01 and max_gap(ways[0], rlvr) > 0.01


def max_gap(ours, theirs):
    pairs = zip(ours.token_logprobs, theirs.token_logprobs, strict=False)  # one may end earlier
    return max(abs(our - their) for our, their in pairs)


def test_log_probabilities_are_those_of_the_extrapolated_distribution(client):
    """log π = log p_rlvr + strength · Δ up to a constant of the row, on tokens all three list."""
    strength = 0.5
    settings = {"extrapolation": {"strength": strength, "plausibility": 0}}
    tops = {}
    for name, model in (("rlvr", "tiny@rlvr"), ("base", "tiny@base")):
        tops[name] = logprobs(client, model).top_logprobs[0]
    mixed = logprobs(client, **settings).top_logprobs[0]
    common = sorted(set(mixed) & set(tops["rlvr"]) & set(tops["base"]))
    assert len(common) >= 2
    shifts = [
        mixed[token] - ((1 + strength) * tops["rlvr"][token] - strength * tops["base"][token])
        for token in common
    ]
    assert max(shifts) - min(shifts) < 1e-3


def test_what_was_applied_is_said(client):
    assert complete(client)[1] == "strength=1; plausibility=0.05; gate=none"
    assert complete(client, "tiny@base")[1].startswith("strength=-1; ")


def test_a_chat_answers_at_every_strength(client):
    for strength in (-1, 0, 0.5, 2):
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "517+486=?"}],
            max_tokens=8,
            extra_body={"extrapolation": strength},
        )
        assert answer.model == "tiny"
        assert answer.usage.completion_tokens > 0


def test_a_stream_says_the_same_as_an_answer_and_counts(client):
    whole, _ = complete(client, "tiny@1.5")
    chunks = list(
        client.completions.create(
            model="tiny@1.5",
            prompt=PROMPT,
            temperature=0,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 5


def test_a_chat_streams(client):
    chunks = client.chat.completions.create(
        model="tiny@0.5",
        messages=[{"role": "user", "content": "1+1=?"}],
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert list(chunks)[-1].usage.completion_tokens > 0


def test_several_samples_of_one_request(client):
    settings = {"temperature": 1.0, "n": 4, "seed": 3}
    first, _ = complete(client, "tiny@0.5", **settings)
    again, _ = complete(client, "tiny@0.5", **settings)
    texts = [choice.text for choice in first.choices]
    assert len(texts) == 4 and texts == [choice.text for choice in again.choices]


def test_a_stop_string_ends_the_answer(client):
    answer, _ = complete(client, extrapolation=1, stop=[","])
    assert answer.choices[0].finish_reason == "stop"
    assert "," not in answer.choices[0].text


def test_a_schema_holds_at_every_strength(client):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    for strength in (-1, 0, 3):
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "1+1=?"}],
            temperature=0,
            max_tokens=60,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": schema, "strict": True},
            },
            extra_body={"extrapolation": {"strength": strength, "plausibility": 0}},
        )
        text = answer.choices[0].message.content
        # A model this small may spend its tokens on the white space that JSON allows.
        if answer.choices[0].finish_reason == "stop":
            assert json.loads(text)["a"] in (1, 2)
        else:
            assert re.match(r'\s*(\{\s*("a")?|$)', text)


def test_responses_take_the_field(client):
    settings = {"model": "tiny", "input": "1+1=?", "max_output_tokens": 6}
    raw = client.responses.with_raw_response.create(**settings, extra_body={"extrapolation": 0.5})
    assert raw.headers["x-extrapolation"].startswith("strength=0.5; ")
    assert raw.parse().output


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"extrapolation": 99}, "extrapolation"),
        ({"extrapolation": {"strenght": 1}}, "extrapolation.strenght"),
        ({"vllm_xargs": {"extrapolation_strength": True}}, "vllm_xargs.extrapolation_strength"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
def test_malformed_requests_raise_with_the_place(client, request_, param):
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, extra_body=request_)
    assert refused.value.param == param


def test_unknown_names_are_vllms_to_refuse(client):
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, "tiny@much")
    assert refused.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        complete(client, "other@0.5")


def test_many_strengths_at_once_answer_as_they_do_alone(client, server):
    strengths = [-1, -0.5, 0, 0.25, 0.5, 1, 1.5, 2, 3, 4]

    def alone(strength):
        return complete(client, extrapolation=strength)[0].choices[0].text

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none") as many:
            requests = [
                many.completions.create(
                    model="tiny",
                    prompt=PROMPT,
                    temperature=0,
                    max_tokens=40,
                    extra_body={"extrapolation": strength},
                )
                for strength in strengths
            ]
            return [answer.choices[0].text for answer in await asyncio.gather(*requests)]

    assert asyncio.run(together()) == [alone(strength) for strength in strengths]


def test_a_client_that_leaves_stops_its_request(client, server):
    stream = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    while running(client) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running(client) == 0


def running(client):
    metrics = client.with_options(base_url=str(client.base_url).removesuffix("v1/")).get(
        "/metrics", cast_to=str
    )
    [value] = re.findall(r"^vllm:num_requests_running\{.*\} (.+)$", metrics, re.MULTILINE)
    return float(value)


GATE = {"gate": "delta", "threshold": -0.1, "primary": "base", "strength": 0.5}


def metric(client, name):
    metrics = client.with_options(base_url=str(client.base_url).removesuffix("v1/")).get(
        "/metrics", cast_to=str
    )
    return float(re.findall(rf"^{re.escape(name)} (.+)$", metrics, re.MULTILINE)[0])


def test_a_gated_answer_says_how_often_it_was_redrawn(client):
    before = metric(client, "rlvr_decode_intervention_rate_count")
    raw = client.completions.with_raw_response.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=20,
        n=2,
        temperature=0.8,
        top_p=0.9,
        extra_body={"extrapolation": GATE, "ignore_eos": True},
    )
    assert raw.headers["x-extrapolation"].endswith("gate=delta; threshold=-0.1; primary=base")
    rate, positions = re.fullmatch(
        r"rate=(\S+); positions=(\d+)", raw.headers["x-extrapolation-intervention"]
    ).groups()
    assert positions == "40"
    assert 0 < float(rate) < 1
    assert metric(client, "rlvr_decode_intervention_rate_count") == before + 1
    assert metric(client, 'rlvr_decode_requests_total{gate="delta"}') >= 1


def test_the_rule_owns_what_the_request_says_of_sampling(client):
    """Log-probs are those of the distribution drawn from: certain if that is greedy."""
    for settings in ({"temperature": 0}, {"temperature": 1, "extra_body": {"top_k": 1}}):
        answer, _ = complete(client, extrapolation=GATE, logprobs=1, max_tokens=8, **settings)
        assert answer.choices[0].logprobs.token_logprobs == pytest.approx([0] * 8, abs=1e-5)


def test_replacement_everywhere_is_rlvr(client):
    rlvr, _ = complete(client, "tiny@rlvr")
    gates = ({"gate": "all"}, {"gate": "delta", "threshold": 100, "primary": "base"})
    for gate in gates:
        replaced, _ = complete(client, extrapolation={"strength": 0} | gate)
        assert replaced.choices[0].text == rlvr.choices[0].text
    kept, _ = complete(client, extrapolation=GATE | {"threshold": -100})
    assert kept.choices[0].text == complete(client, "tiny@base")[0].choices[0].text


def test_a_gated_stream_says_it_last(server):
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 10, "ignore_eos": True}
    body |= {"stream": True, "extrapolation": GATE}
    answer = httpx.post(f"{server}/v1/completions", json=body)
    assert re.search(
        rb"data: \[DONE\]\n\n: x-extrapolation-intervention: rate=\S+; positions=10\n\n$",
        answer.content,
    )


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "1+1=?"}]}),
        ("/v1/responses", {"input": "1+1=?"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "1+1=?"}], "max_tokens": 5}),
        ("/inference/v1/generate", {"token_ids": [5, 6], "sampling_params": {"max_tokens": 5}}),
    ],
)
def test_every_route_takes_a_gate(server, path, body):
    body = {"model": "tiny", "extrapolation": GATE, "temperature": 0.7, "max_tokens": 5} | body
    answer = httpx.post(f"{server}{path}", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-extrapolation-intervention"].startswith("rate=")


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"extrapolation": {"gate": "delta"}}, "extrapolation.threshold"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"temperature": 3}, "temperature"),
        ({"logprobs": 1, "logit_bias": {"5": 1}}, "logprobs"),
    ],
)
def test_what_cannot_be_gated_raises_with_the_place(client, request_, param):
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, extra_body={"extrapolation": GATE} | request_)
    assert refused.value.param == param


def test_a_gated_grammar_holds(client):
    answer, _ = complete(
        client,
        extrapolation=GATE,
        extra_body={"structured_outputs": {"regex": "[0-9]{3}-(yes|no)"}},
    )
    assert re.fullmatch("[0-9]{3}-(yes|no)", answer.choices[0].text)
