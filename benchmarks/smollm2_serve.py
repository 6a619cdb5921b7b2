"""From an empty cache to exact answers: `rlvr-decode serve smollm2` against transformers.

    python benchmarks/smollm2_serve.py

Fetches the base, checks its hash, serves the adapter pair in float32, asks through the openai
client, greedily, at three strengths, and compares every token with `rlvr_decode.hf` on two models
in float32, the adapter merged into one of them.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from openai import OpenAI

from rlvr_decode.evaluate.report import table
from rlvr_decode.evaluate.with_transformers import Models, open_models
from rlvr_decode.hf import generate
from rlvr_decode.pair import Pair
from rlvr_decode.params import Extrapolation

STRENGTHS = (-1.0, 0.0, 1.0)
QUESTIONS = (
    "Calculate 7 + 10.\nAnswer with only the number.",
    "Calculate 57 - 43.\nAnswer with only the number.",
    "Calculate 12 - 95.\nAnswer with only the number.",
    "What is the capital of France?",
)
TOKENS = 24
PATIENCE = 600


@contextmanager
def serving(cache: Path, log: Path) -> Iterator[str]:
    """The address of a server that has just become healthy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "rlvr_decode", "serve", "smollm2", "--port", port]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "512", "--max-num-seqs", "16"]
    with log.open("w") as file:
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(60)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the server answers; raise RuntimeError if it ends or takes too long."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(url):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    raise RuntimeError(f"no server at {url}:\n{log.read_text()[-2000:]}")


def served(client: OpenAI, question: str, strength: float) -> list[int]:
    """The tokens of the server's greedy answer."""
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=TOKENS,
        extra_body={"extrapolation": strength, "return_token_ids": True},
    )
    extra: Any = answer.choices[0].model_extra
    return list(extra["token_ids"])


def exact(models: Models, question: str, setting: Extrapolation) -> list[int]:
    """The tokens of transformers' greedy answer."""
    turns = [{"role": "user", "content": question}]
    prompt: Any = models.tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=False
    )
    ids = torch.tensor([models.tokenizer.encode(prompt)])
    tokens = generate(
        models.rlvr,
        models.base,
        ids,
        setting,
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=list(models.stop),
    )
    response: list[int] = tokens[0, ids.shape[1] :].tolist()
    return response


def main() -> None:
    """Serve, ask, compare, report; the exit status is 1 if a token differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as cache:
        started = time.monotonic()
        with serving(Path(cache), Path(cache) / "log") as address:
            ready = time.monotonic() - started
            client = OpenAI(base_url=address, api_key="none")
            answers = {(q, s): served(client, q, s) for q in QUESTIONS for s in STRENGTHS}
        os.environ["XDG_CACHE_HOME"] = cache
        pair = Pair.open("smollm2", verify=True)
        models = open_models(pair)
        # A request that names a strength alone has the pair's plausibility.
        oracle = {
            (q, s): exact(models, q, replace(pair.defaults, strength=s))
            for q in QUESTIONS
            for s in STRENGTHS
        }
    rows = [
        [
            question.partition("\n")[0],
            f"{strength:g}",
            repr(models.tokenizer.decode(tokens, skip_special_tokens=True)),
            f"{sum(a == b for a, b in zip(tokens, oracle[question, strength], strict=False))}"
            f" of {max(len(tokens), len(oracle[question, strength]))}",
        ]
        for (question, strength), tokens in answers.items()
    ]
    same = sum(answers[key] == oracle[key] for key in answers)
    text = (
        "# `rlvr-decode serve smollm2` from an empty cache\n\n"
        f"Healthy after {ready:.0f} s, download and conversion included. Greedy, float32, through "
        f"the openai client, against `rlvr_decode.hf`: {same} of {len(answers)} answers agree in "
        "every token.\n\n"
        + table(["question", "strength", "answer", "tokens as transformers"], rows)
        + "\n"
    )
    print(text)
    if args.report is not None:
        args.report.write_text(text, encoding="utf-8")
    sys.exit(same != len(answers))


if __name__ == "__main__":
    main()
