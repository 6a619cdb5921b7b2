"""What `fuzz_server.py` makes hostile requests of: requests that are answered, and nasty values."""

from __future__ import annotations

import json
import math
from typing import Any

PROMPT = "517+486=?\n"
MESSAGES = [{"role": "user", "content": "517+486=?"}]
SMALL = {"model": "tiny", "temperature": 0, "max_tokens": 4}
# What every operation with a body answers.
ANSWERED: dict[str, dict[str, Any]] = {
    "/v1/completions": SMALL | {"prompt": PROMPT, "extrapolation": 0.5},
    "/v1/completions/render": SMALL | {"prompt": PROMPT},
    "/v1/chat/completions": SMALL | {"messages": MESSAGES, "extrapolation": {"strength": 0.5}},
    "/v1/chat/completions/batch": SMALL | {"messages": [MESSAGES, MESSAGES]},
    "/v1/chat/completions/render": SMALL | {"messages": MESSAGES},
    "/v1/responses": {"model": "tiny", "input": "1+1=?", "max_output_tokens": 4},
    "/v1/responses/render": {"model": "tiny", "input": "1+1=?", "max_output_tokens": 4},
    "/v1/messages": SMALL | {"messages": MESSAGES},
    "/v1/messages/render": SMALL | {"messages": MESSAGES},
    "/v1/messages/count_tokens": {"model": "tiny", "messages": MESSAGES},
    "/v1/delta": {"input": PROMPT, "gate": "delta", "threshold": 0.1, "top": 2},
    "/invocations": SMALL | {"prompt": PROMPT},
    "/tokenize": {"model": "tiny", "prompt": PROMPT},
    "/detokenize": {"model": "tiny", "tokens": [5, 6, 7]},
    "/inference/v1/generate": {
        "model": "tiny",
        "token_ids": [5, 6, 7],
        "sampling_params": {"max_tokens": 4, "temperature": 0},
    },
    "/generative_scoring": {
        "model": "tiny",
        "query": "1+1=",
        "items": ["2", "3"],
        "label_token_ids": [5, 6],
    },
}
NASTY: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 17, 2**31, 2**63, 2**64, 10**400, -(2**63) - 1,
    0.5, -0.5, 1e-320, 1e308, math.nan, math.inf, -math.inf,
    "", "0.5", "tiny@", "\x00", "\ud800", "\U0010ffff", "(?:a+)+$", "(" * 3000, "a" * 70_000,
    "{{ ''.__class__.__mro__ }}", "{% for i in range(10**9) %}x{% endfor %}", "../../etc/passwd",
    "application/json\r\nx: y",
    [], [[]], [None], [0], [-1], [2**40], [1e308], ["a"] * 3000, [[1, 2], [3]], [{}],
    {}, {"": ""}, {"a": None}, {"strength": 2}, {"type": "json_object"}, {"type": "function"},
    {"role": "user"}, {"1": 1e9}, {"999999": 1}, {"a": {"b": {"c": [{}]}}},
)  # fmt: skip
NESTED = json.loads("[" * 900 + "]" * 900)
