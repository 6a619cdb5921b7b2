"""Cost of a pair on GPUs that this project has not run on: the tables of scaling.md, and a check.

    python benchmarks/scaling.py --write      the tables of scaling.md, from cost_model.py
    python benchmarks/scaling.py --check      the model against decode.py's figures of this machine

The check measures this machine's products, takes what else a step costs from each arm at the least
concurrency, predicts the other steps of results/decode.jsonl, and prints how far off it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from bench_table import inserted
from cost_model import (
    BYTES,
    H200,
    QWEN2_5,
    VARIANTS,
    Device,
    Shape,
    decode_seconds,
    prefill_seconds,
    requests_that_fit,
    weight_bytes,
)
from decode import NEW_TOKENS
from decode_arms import PROMPT_TOKENS, RANK, SHAPE
from findings import HERE, RESULTS, Finding, add_argument, tell
from traffic import Load, simulate

PAGE = HERE / "scaling.md"
BEGIN, END = "<!-- scaling:begin -->", "<!-- scaling:end -->"
# A model fits from so many GPUs on, and scales to so many.
GPUS = {"7B": (1, 2, 4), "32B": (1, 2, 4, 8), "72B": (2, 4, 8)}
CONTEXT = 4096
UNGATED = {name: variant for name, variant in VARIANTS.items() if "gated" not in name}
# decode.py's arms, by what they are here.
ARMS = {"single": "single", "full": "full pair", "adapter": "adapter pair"}
ERROR_BAR = 25
SMALL = Shape(
    hidden=SHAPE["hidden_size"],
    intermediate=SHAPE["intermediate_size"],
    layers=SHAPE["num_hidden_layers"],
    heads=SHAPE["num_attention_heads"],
    kv_heads=SHAPE["num_key_value_heads"],
    head_dim=SHAPE["head_dim"],
    vocab=SHAPE["vocab_size"],
    tied=True,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the tables of scaling.md")
    parser.add_argument("--check", action="store_true", help="against results/decode.jsonl")
    add_argument(parser)
    args = parser.parse_args()
    if args.write:
        text = "\n\n".join(tables())
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(inserted(page, text, begin=BEGIN, end=END), encoding="utf-8")
        print(text)
    if args.check:
        tell(check(), args.findings)


def tables() -> Iterator[str]:
    yield "**Memory.** GB of weights, and how many requests of 4096 tokens fit beside them."
    yield table(["model", "GPUs", *UNGATED], ([*where, *sizes(*where)] for where in places()))
    yield (
        "**A decode step**, milliseconds of one model, and × that of the others; 4096 tokens of "
        "context each; – where they do not fit."
    )
    yield table(
        ["model", "GPUs", "requests", *VARIANTS],
        (
            [*where, str(requests), *steps(*where, requests)]
            for where in places()
            for requests in (1, 8, 32, 128)
        ),
    )
    yield "**A prompt** of 4096 tokens, milliseconds of one model, and × that of the others."
    yield table(["model", "GPUs", *UNGATED], ([*where, *prompts(*where)] for where in places()))
    yield (
        "**Mixed traffic**, simulated (`traffic.py`): 7B on one GPU, prompts and answers of 512 "
        "tokens. Tokens a second / 95th percentile of milliseconds a token of an answer, its "
        "waiting and its prompt included; and the share of steps without base."
    )
    yield table(
        ["requests/s", "extrapolated", *UNGATED],
        (
            [str(rate), f"{share:.0%}", *mixed(rate, share)]
            for rate in (2, 8, 16)
            for share in (0.0, 0.1, 0.5, 1.0)
        ),
    )


def places() -> Iterator[tuple[str, str]]:
    """Each model with each number of GPUs."""
    for name, counts in GPUS.items():
        for gpus in counts:
            yield name, str(gpus)


def sizes(name: str, gpus: str) -> list[str]:
    shape, cells = QWEN2_5[name], []
    for variant in UNGATED.values():
        fit = requests_that_fit(shape, variant, H200, context=CONTEXT, gpus=int(gpus))
        cells.append(f"{weight_bytes(shape, variant) / 1e9:.0f}; {fit}")
    return cells


def steps(name: str, gpus: str, requests: int) -> list[str]:
    shape, seconds = QWEN2_5[name], []
    for variant in VARIANTS.values():
        options = {"context": CONTEXT, "gpus": int(gpus)}
        fits = requests_that_fit(shape, variant, H200, **options) >= requests
        taken = decode_seconds(shape, variant, H200, requests=requests, **options)
        seconds.append(taken if fits else None)
    return over_the_first(seconds)


def prompts(name: str, gpus: str) -> list[str]:
    shape = QWEN2_5[name]
    return over_the_first(
        [
            prefill_seconds(shape, variant, H200, prompt=CONTEXT, gpus=int(gpus))
            if requests_that_fit(shape, variant, H200, context=CONTEXT, gpus=int(gpus))
            else None
            for variant in UNGATED.values()
        ]
    )


def over_the_first(seconds: Sequence[float | None]) -> list[str]:
    """The first in milliseconds, the others as its multiples."""
    first, *others = seconds
    cells = ["–" if first is None else f"{1e3 * first:.1f}"]
    return cells + ["–" if not (first and each) else f"{each / first:.2f}" for each in others]


def mixed(rate: float, share: float) -> list[str]:
    cells = []
    for name, variant in UNGATED.items():
        served = simulate(QWEN2_5["7B"], variant, H200, Load(rate=rate, share=share))
        base = "" if name == "single" else f"; {served.without_base:.0%}"
        cells.append(f"{served.tokens_per_second:.0f} / {served.p95_ms:.1f}{base}")
    return cells


def table(head: Sequence[str], rows: Iterator[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def check() -> list[Finding]:
    """Predicted over measured pair ÷ single, at every concurrency but the least."""
    measured = newest_steps()
    if len(measured) < 2:
        raise SystemExit("results/decode.jsonl has not two concurrencies in bfloat16: decode.py")
    least = min(measured)
    machine = this_machine()
    print(f"products: {machine.bandwidth / 1e9:.0f} GB/s, {machine.flops / 1e9:.0f} GFLOP/s")
    devices = {}
    for arm, name in ARMS.items():
        rest = measured[least][arm] - predicted(name, machine, least)
        devices[arm] = replace(machine, host=max(0.0, rest))
        print(f"{name}: the rest of a step is {1e3 * rest:.1f} ms")
    errors = []
    for requests in sorted(measured.keys() - {least}):
        said = {arm: predicted(name, devices[arm], requests) for arm, name in ARMS.items()}
        found = measured[requests]
        for arm in ("full", "adapter"):
            ratio, wanted = said[arm] / said["single"], found[arm] / found["single"]
            errors.append(100 * abs(ratio / wanted - 1))
            print(f"{arm} pair, {requests} requests: {ratio:.2f} predicted, {wanted:.2f} measured")
    return [
        Finding(
            what="cost model of a decode step, pair ÷ single, 104 M on this CPU: error",
            rival="`decode.py`",
            values=errors,
            unit="%",
            at_most=ERROR_BAR,
            note="the products' rates are measured alone; the rest of a step is taken from the "
            f"same arm at {least} request, the other concurrencies are predicted (scaling.md)",
        )
    ]


def newest_steps() -> dict[int, dict[str, float]]:
    """Median seconds of a decode step by concurrency and arm, of the last run of each."""
    lines = (RESULTS / "decode.jsonl").read_text(encoding="utf-8").splitlines()
    steps = {}
    for record in map(json.loads, lines):
        short = record.get("new_tokens", NEW_TOKENS) == NEW_TOKENS
        if short and record["dtype"] == "bfloat16" and record.get("compiled"):
            step = record["decode_step_ms"].items()
            steps[record["concurrency"]] = {arm: statistics.median(ms) / 1e3 for arm, ms in step}
    return steps


def predicted(name: str, device: Device, requests: int) -> float:
    variant = VARIANTS[name]
    if variant.rank:
        variant = replace(variant, rank=RANK)
    context = PROMPT_TOKENS + 16
    return decode_seconds(SMALL, variant, device, requests=requests, context=context)


def this_machine() -> Device:
    """This CPU: what its products reach with few rows and with many."""
    slow, fast = (products_seconds(rows) for rows in (1, 64))
    weights = SMALL.layer_weights + SMALL.head_weights
    return Device(bandwidth=BYTES * weights / slow, flops=2 * 64 * weights / fast)


def products_seconds(rows: int) -> float:
    """All products of a step with so many rows, as vLLM's CPU backend does them."""
    import torch
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    layers: list[Any] = []
    for outputs, inputs in [*SMALL.matrices * SMALL.layers, (SMALL.vocab, SMALL.hidden)]:
        layer: Any = torch.nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16)
        layer.requires_grad_(False)
        dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
        layers.append((layer, torch.randn(rows, inputs).bfloat16()))
    times = []
    for _ in range(8):
        began = time.perf_counter()
        for layer, inputs_ND in layers:
            layer.cpu_linear(inputs_ND, layer.weight, None)
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
