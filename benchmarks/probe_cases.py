"""The requests of `probe.py`, and why some are answered otherwise than stock vLLM answers them."""

from __future__ import annotations

from typing import Any

MODEL = "tiny@rlvr"
PROMPT = "517+486=?\n"
MESSAGES = [{"role": "user", "content": "517+486=?"}]
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}},
    "required": ["a"],
    "additionalProperties": False,
}
JSON = {"content-type": "application/json"}

Case = dict[str, Any]


def chat(**settings: Any) -> Case:
    plain = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 8}
    return {"call": "chat", "with": plain | settings}


def complete(**settings: Any) -> Case:
    plain = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 8}
    return {"call": "completions", "with": plain | settings}


def respond(**settings: Any) -> Case:
    plain = {"model": MODEL, "input": "517+486=?", "temperature": 0, "max_output_tokens": 8}
    return {"call": "responses", "with": plain | settings}


def extra(**fields: Any) -> Case:
    """A completion with fields that the client does not know."""
    return complete(extra_body=fields)


def raw(path: str, **request: Any) -> Case:
    return {"path": path} | request


BODY = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 4}
USAGE = {"include_usage": True}

CASES: dict[str, Case] = {
    "completion": complete(),
    "completion, token ids": complete(prompt=[5, 6, 7]),
    "completion, two prompts": complete(prompt=[PROMPT, "1+1=?\n"]),
    "completion, stream": complete(stream=True),
    "completion, stream with usage": complete(stream=True, stream_options=USAGE),
    "completion, n=3 with a seed": complete(n=3, seed=7, temperature=1),
    "completion, seed": complete(seed=7, temperature=1),
    "completion, logprobs": complete(logprobs=3),
    "completion, echo": complete(echo=True),
    "completion, echo with logprobs": complete(echo=True, logprobs=1),
    "completion, stop": complete(stop=[",", "3"]),
    "completion, stop token ids": extra(stop_token_ids=[5, 6, 7, 8, 9]),
    "completion, logit_bias": complete(logit_bias={"5": 100}),
    "completion, penalties": complete(presence_penalty=1, frequency_penalty=1),
    "completion, top_k and min_p": extra(top_k=3, min_p=0.1),
    "completion, prompt_logprobs": extra(prompt_logprobs=1),
    "completion, regex": extra(structured_outputs={"regex": "[0-9]{3}-(yes|no)"}),
    "completion, choice": extra(structured_outputs={"choice": ["yes", "no"]}),
    "completion, return_token_ids": extra(return_token_ids=True),
    "completion, beam search": extra(use_beam_search=True, n=2),
    "chat": chat(),
    "chat, system message": chat(messages=[{"role": "system", "content": "Be brief."}, *MESSAGES]),
    "chat, parts of text": chat(
        messages=[{"role": "user", "content": [{"type": "text", "text": "517+486=?"}]}]
    ),
    "chat, stream with usage": chat(stream=True, stream_options=USAGE),
    "chat, n=2": chat(n=2, seed=3, temperature=1),
    "chat, top_logprobs": chat(logprobs=True, top_logprobs=2),
    "chat, max_completion_tokens": chat(max_completion_tokens=3),
    "chat, json_schema": chat(
        max_tokens=20,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
        },
    ),
    "chat, json_object": chat(response_format={"type": "json_object"}),
    "chat, tools": chat(tools=[TOOL]),
    "chat, tool named": chat(
        tools=[TOOL], tool_choice={"type": "function", "function": {"name": "add"}}
    ),
    "chat, unknown role": chat(messages=[{"role": "zzz", "content": "517+486=?"}]),
    "chat, no messages": chat(messages=[]),
    "chat, an image": chat(
        messages=[
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png,A"}}],
            }
        ]
    ),
    "response": respond(),
    "response, stream": respond(stream=True),
    "response, instructions": respond(instructions="Be brief."),
    "models": {"call": "models"},
    "model by name": raw("/v1/models/tiny", method="GET"),
    "health": raw("/health", method="GET"),
    "version": raw("/version", method="GET"),
    "metrics": raw("/metrics", method="GET", status_only=True),
    "tokenize": raw("/tokenize", json={"model": MODEL, "prompt": PROMPT}),
    "tokenize, chat": raw("/tokenize", json={"model": MODEL, "messages": MESSAGES}),
    "detokenize": raw("/detokenize", json={"model": MODEL, "tokens": [5, 6, 7]}),
    "render": raw("/v1/completions/render", json=BODY),
    "Anthropic's messages": raw("/v1/messages", json=BODY | {"messages": MESSAGES}),
    "invocations": raw("/invocations", json=BODY),
    "temperature -1": complete(temperature=-1),
    "temperature 1e9": complete(temperature=1e9),
    "temperature NaN": raw("/v1/completions", data='{"prompt": "1", "temperature": NaN}',
                           headers=JSON),
    "temperature Infinity": raw("/v1/completions", data='{"prompt": "1", "temperature": Infinity}',
                                headers=JSON),
    "top_p 0": complete(top_p=0),
    "top_p 2": complete(top_p=2),
    "n 0": complete(n=0),
    "n 100000": complete(n=100_000, temperature=1),
    "max_tokens 0": complete(max_tokens=0),
    "max_tokens -1": complete(max_tokens=-1),
    "max_tokens 1e9": complete(max_tokens=10**9),
    "top_logprobs 99": chat(logprobs=True, top_logprobs=99),
    "logit_bias of no token": complete(logit_bias={"99999999": 1}),
    "seed 2**70": complete(seed=2**70),
    "10,000 stops": complete(stop=[f"s{i}" for i in range(10_000)]),
    "a prompt too long": complete(prompt="1+" * 20_000),
    "an empty prompt": complete(prompt=""),
    "an unknown field": extra(a_field_nobody_knows=1),
    "vllm_xargs of others": extra(vllm_xargs={"their_setting": 1}),
    "vllm_xargs, unknown of ours": extra(vllm_xargs={"extrapolation_nothing": 1}),
    "vllm_xargs, a bool of ours": extra(vllm_xargs={"extrapolation_strength": True}),
    "extrapolation 99": extra(extrapolation=99),
    "a model that is not served": complete(model="another"),
    "a strength by name": complete(model="tiny@0"),
    "no key": raw("/v1/completions", json=BODY, headers={"authorization": None}),
    "a wrong key": raw("/v1/completions", json=BODY, headers={"authorization": "Bearer wrong"}),
    "no key, another route": raw(
        "/tokenize", json={"model": MODEL, "prompt": PROMPT}, headers={"authorization": None}
    ),
    "no such route": raw("/v1/nothing", json=BODY),
    "a wrong method": raw("/v1/completions", method="GET"),
    "a wrong content type": raw(
        "/v1/completions", data="prompt=1", headers={"content-type": "text/plain"}
    ),
    "no JSON": raw("/v1/completions", data="{", headers=JSON),
    "JSON that is no object": raw("/v1/completions", data="[1]", headers=JSON),
    "deep JSON": raw("/v1/completions", data="[" * 100_000 + "]" * 100_000, headers=JSON),
    "deep JSON in a field": raw(
        "/v1/completions",
        data='{"prompt": "1", "x": ' + "[" * 5_000 + "]" * 5_000 + "}",
        headers=JSON,
    ),
    "a key twice": raw(
        "/v1/completions", data='{"prompt": "1", "prompt": "2", "temperature": 0}', headers=JSON
    ),
}  # fmt: skip

_KEY = "every refusal is in OpenAI's envelope, with what to do; stock says `Unauthorized`"
_ROUTER = "every refusal is in OpenAI's envelope, of a type that tells clients what to do"
_SETTING = (
    "a setting that cannot be applied is refused by name; stock ignores what it does not know"
)
_DEPTH = "the same 400, in the envelope and with the reason"

EXPLAINED: dict[str, str] = {
    "n 100000": "`--max-sequences` bounds what one request may have generated for both models",
    "vllm_xargs, unknown of ours": _SETTING,
    "vllm_xargs, a bool of ours": _SETTING,
    "extrapolation 99": _SETTING,
    "a strength by name": "a strength after @ is this server's; stock knows no such model",
    "no key": _KEY,
    "a wrong key": _KEY,
    "no key, another route": "a key is asked for wherever the model works; stock leaves it open",
    "no such route": _ROUTER,
    "model by name": _ROUTER,
    "seed 2**70": "refused with the body, before vLLM's own check of it, and in fewer words",
    "a wrong method": _ROUTER,
    "deep JSON": _DEPTH,
    "deep JSON in a field": _DEPTH,
    "a key twice": "no model is named, so the pair's defaults apply: strength 1",
}
