"""Tokens per second of a pair: in vLLM, against one model in vLLM and two in transformers.

    python benchmarks/decode.py [--dtype bfloat16 --concurrency 1 8 32 --long 8 --eager]

All arms run in one process on the same random Qwen3 pair (104 M parameters, an update of rank
16), taking turns, so that ratios are of the same minutes. `full` is the pair as two checkpoints,
`adapter` as base and a LoRA; `… plain` is the same engine with every request at strength 0. The
engines compile, as vLLM does by default. With --rivals: `transformers` is its own two-model
processor, which takes one request at a time; `batched` is `rlvr_decode.hf.generate`, all at once;
`loop` is the direction paper's published way, two engines and one token a call.

First every pair answers the same prompts at the same strengths as transformers does in float32: in
float32 no token may differ, in bfloat16 no log-probability by more than its rounding explains, or
no figure is printed. A request has 64 prompt tokens and 64 new ones, with --long also 256, for the
answers that RL teaches are longer than their prompts. "request" is the time of all of it, "decode"
the time of all tokens but the first. "CPU" is the processor time of the latter, which says more on
a machine that others use (set OMP_NUM_THREADS=1: waiting threads spin). Results are appended to
results/decode.jsonl.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from decode_arms import (
    LOOP_LOGPROBS,
    PROMPT_TOKENS,
    Arm,
    batched,
    make_pairs,
    one_at_a_time,
    plain,
    two_engines,
    vllm_arm,
    workload,
)
from decode_check import ROUNDING, agreement, check
from findings import RESULTS, Finding, add_argument, append, ratios, surroundings, tell

NEW_TOKENS, LONG = 64, 256
KV_BYTES = 2**28  # of each engine: 32 requests of a full pair in float32
PAIRS = ("full", "adapter")
RIVALS = {
    "transformers": "transformers, two models, one request at a time",
    "batched": "transformers, two models, `hf.generate`",
    "loop": "the paper's loop, two vLLM engines, one token a call",
}
# Of one model's time; the adapter pair's is for 8 requests in bfloat16.
FULL_BAR, ADAPTER_BAR, MEMORY_BAR = 2.05, 1.35, 1.1
PLAIN_BAR = 0.97  # of one model's throughput


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32", choices=list(ROUNDING))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--long", type=int, nargs="*", default=[], help=f"at which to ask for {LONG} tokens too"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--eager", action="store_true", help="without torch.compile, vLLM's default"
    )
    parser.add_argument("--rivals", action="store_true", help="measure the other ways as well")
    parser.add_argument("--out", type=Path, default=RESULTS / "decode.jsonl")
    add_argument(parser)
    args = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # It would win over KV_BYTES.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    with tempfile.TemporaryDirectory() as directory:
        os.environ.setdefault("VLLM_CACHE_ROOT", directory)
        arms, found = make_arms(Path(directory), args)
        print(f"\n{'':14}{'requests':>9}{'tokens':>7}{'tokens/s':>10}{'min–max':>16}", end="")
        print(f"{'× request':>11}{'× decode':>10}{'× CPU':>8}")
        loads = [(n, NEW_TOKENS) for n in args.concurrency] + [(n, LONG) for n in args.long]
        for concurrency, new in loads:
            taken = measure(arms, concurrency, new, args.rounds)
            report(taken, concurrency, args)
            found += compare(taken, concurrency, args.dtype)
    tell(found, args.findings)


def make_arms(directory: Path, args: argparse.Namespace) -> tuple[dict[str, Arm], list[Finding]]:
    """The arms, once the pairs are checked; and what is known before any is timed."""
    import torch
    from transformers import AutoModelForCausalLM
    from vllm import LLM

    from rlvr_decode.engine.launch import engine_args

    full, adapter = make_pairs(directory, getattr(torch, args.dtype))
    flags: dict[str, Any] = {
        "max_model_len": PROMPT_TOKENS + LONG,
        "max_num_seqs": 32,
        "kv_cache_memory_bytes": KV_BYTES,
        "enable_prefix_caching": False,
        "enforce_eager": args.eager,
    }
    single = LLM(model=str(full.rlvr.fetch()), dtype=args.dtype, **flags)
    pairs = {
        "full": LLM(**engine_args(full, **flags)),
        "adapter": LLM(**engine_args(adapter, **flags)),
    }
    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(checkpoint.fetch(), dtype=torch.float32)
        for checkpoint in (full.base, full.rlvr)
    ]
    for name, engine in pairs.items():
        check(name, engine, models, args.dtype)
    arms = {"single": vllm_arm(single)}
    for name, engine in pairs.items():
        arms |= {name: vllm_arm(engine), f"{name} plain": plain(vllm_arm(engine))}
    found = [memory("full", full, args.dtype), memory("adapter", adapter, args.dtype)]
    if args.rivals:
        flags |= {"enable_prefix_caching": True, "max_logprobs": LOOP_LOGPROBS, "block_size": 32}
        checkpoints = (str(each.fetch()) for each in (full.base, full.rlvr))
        loop = two_engines(*(LLM(model=path, dtype=args.dtype, **flags) for path in checkpoints))
        arms |= {"transformers": one_at_a_time(*models), "batched": batched(*models)}
        arms |= {"loop": loop}
        found.append(agreement(loop, models, args.dtype))
    return arms, found


def memory(name: str, pair: Any, dtype: str) -> Finding:
    """The bytes of weights that an engine reads, over one model's."""
    sizes = [
        sum(file.stat().st_size for file in checkpoint.fetch().glob("*.safetensors"))
        for checkpoint in (pair.base, pair.rlvr)
    ]
    return Finding(
        what=f"{name} pair, {dtype}: weights in memory",
        rival="one model",
        values=[sum(sizes) / sizes[0]],
        at_most=MEMORY_BAR if name == "adapter" else None,
        note="weights as they are loaded; vLLM's CPU backend repacks them out of sight",
    )


class Clock(NamedTuple):
    """Seconds on the wall and of the processor."""

    wall: float
    cpu: float

    @classmethod
    def read(cls) -> Clock:
        return cls(time.perf_counter(), time.process_time())

    def since(self, begin: Clock) -> Clock:
        return Clock(self.wall - begin.wall, self.cpu - begin.cpu)


class Round(NamedTuple):
    """What an arm took for whole requests of so many tokens, and for their first token alone."""

    new: int
    request: Clock
    first: Clock

    @property
    def step(self) -> Clock:
        """One step of decoding."""
        wall, cpu = self.request.since(self.first)
        return Clock(wall / (self.new - 1), cpu / (self.new - 1))


def measure(
    arms: dict[str, Arm], concurrency: int, new: int, rounds: int
) -> dict[str, list[Round]]:
    """The rounds of each arm; the arms take turns."""
    taken: dict[str, list[Round]] = {name: [] for name in arms}
    for _ in range(rounds + 1):
        for name, arm in arms.items():
            prompts, strengths = workload(at_once(name, concurrency))
            gc.collect()
            times = [Clock.read()]
            for tokens in (new, 1):
                arm(prompts, strengths, tokens)
                times.append(Clock.read())
            taken[name].append(Round(new, times[1].since(times[0]), times[2].since(times[1])))
    return {name: values[1:] for name, values in taken.items()}  # the first round warms up


def at_once(name: str, concurrency: int) -> int:
    """The rate of `transformers` does not depend on how many requests wait; two are short."""
    return min(concurrency, 2) if name == "transformers" else concurrency


def report(taken: dict[str, list[Round]], concurrency: int, args: argparse.Namespace) -> None:
    new = taken["single"][0].new
    rates = {
        name: [at_once(name, concurrency) * new / r.request.wall for r in rounds]
        for name, rounds in taken.items()
    }
    # Per step of as many requests as the others have.
    steps = {
        name: [[t * concurrency / at_once(name, concurrency) for t in r.step] for r in rounds]
        for name, rounds in taken.items()
    }
    medians = {
        name: [statistics.median(t) for t in zip(*steps[name], strict=True)] for name in steps
    }
    rate = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        spread = f"{min(values):.1f}–{max(values):.1f}"
        wall, cpu = (a / b for a, b in zip(medians[name], medians["single"], strict=True))
        print(f"{name:14}{concurrency:9}{new:7}{rate[name]:10.1f}{spread:>16}", end="")
        print(f"{rate['single'] / rate[name]:11.2f}{wall:10.2f}{cpu:8.2f}", flush=True)
    record = {
        "concurrency": concurrency,
        "new_tokens": new,
        "dtype": args.dtype,
        "compiled": not args.eager,
        "tokens_per_second": {name: [round(v, 2) for v in rates[name]] for name in rates},
        "decode_step_ms": {n: [round(1e3 * wall, 3) for wall, _ in steps[n]] for n in steps},
        "decode_step_cpu_ms": {n: [round(1e3 * cpu, 3) for _, cpu in steps[n]] for n in steps},
        **surroundings(),
    }
    append(args.out, record)


def compare(taken: dict[str, list[Round]], concurrency: int, dtype: str) -> list[Finding]:
    """Pairs against one model, strength-0 requests against plain vLLM, and the other ways."""
    requests = "1 request" if concurrency == 1 else f"{concurrency} requests"
    if (new := taken["single"][0].new) != NEW_TOKENS:
        requests += f" of {new} tokens"
    # For as many requests as the others have.
    times = {
        name: [r.request.wall * concurrency / at_once(name, concurrency) for r in rounds]
        for name, rounds in taken.items()
    }
    single, found = times["single"], []
    for pair in PAIRS:
        what = f"{pair} pair, {requests}, {dtype}"
        barred = pair == "full" or (concurrency == 8 and dtype == "bfloat16")
        bar = {"full": FULL_BAR, "adapter": ADAPTER_BAR}[pair] if barred else None
        steps = {name: [r.step.wall for r in taken[name]] for name in (pair, "single")}
        found += [
            Finding(
                what=f"{what}: time of a request",
                rival="one model in vLLM",
                values=ratios(times[pair], single),
                at_most=bar,
            ),
            Finding(
                what=f"{what}: time of a decode step",
                rival="one model in vLLM",
                values=ratios(steps[pair], steps["single"]),
                at_most=bar,
            ),
            Finding(
                what=f"{what}: tokens/s at strength 0",
                rival="plain vLLM",
                values=ratios(single, times[f"{pair} plain"]),
                at_least=PLAIN_BAR,
            ),
        ]
        found += [
            Finding(
                what=f"{what}: time",
                rival=rival,
                values=ratios(times[pair], times[name]),
                at_most=1,
            )
            for name, rival in RIVALS.items()
            if name in times
        ]
    return found


if __name__ == "__main__":
    main()
