"""Tokens per second of a pair: in vLLM, against one model in vLLM and two in transformers.

    python benchmarks/decode.py [--dtype bfloat16 --concurrency 1 8 32 --rounds 5 --compile]

All arms run in one process on the same random Qwen3 pair (104 M parameters, an update of rank
16), taking turns, so that ratios are of the same minutes. `full` is the pair as two checkpoints,
`adapter` as base and a LoRA; `… plain` is the same engine with every request at strength 0.
`transformers` is its own two-model processor, which takes one request at a time; `batched` is
`rlvr_decode.hf.generate`, all at once (both only on demand: they take minutes).

First every pair answers the same prompts at the same strengths as transformers does in float32: in
float32 no token may differ, in bfloat16 no log-probability by more than its rounding explains, or
no figure is printed. A request has 64 prompt tokens and 32 new ones. "request" is the time of all
of it, "decode" the time of the last 31 tokens. "CPU" is the processor time of the latter, which
says more on a machine that others use (set OMP_NUM_THREADS=1: waiting threads spin). Results are
appended to results/decode.jsonl.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results" / "decode.jsonl"
PROMPT_TOKENS, NEW_TOKENS, VOCAB, RANK = 64, 32, 32000, 16
SHAPE = {
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": VOCAB,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
# How far a log-probability may lie from float32's: 16 bits round logits of this model by 0.02,
# and a difference that is taken `strength` times adds as much each time.
ROUNDING = {"float32": 1e-3, "bfloat16": 0.05}
Arm = Callable[[list[list[int]], list[float], int], list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32", choices=list(ROUNDING))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile, vLLM's default")
    parser.add_argument("--transformers", action="store_true", help="measure its two ways as well")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with tempfile.TemporaryDirectory() as directory:
        os.environ.setdefault("VLLM_CACHE_ROOT", directory)
        arms = make_arms(Path(directory), args)
        print(f"\n{'':14}{'requests':>9}{'tokens/s':>10}{'min–max':>16}", end="")
        print(f"{'× request':>11}{'× decode':>10}{'× CPU':>8}")
        for concurrency in args.concurrency:
            report(measure(arms, concurrency, args.rounds), concurrency, args)


def make_arms(directory: Path, args: argparse.Namespace) -> dict[str, Arm]:
    """Each arm turns prompts and strengths into so many greedy tokens; pairs are checked."""
    import torch
    from transformers import AutoModelForCausalLM
    from vllm import LLM

    from rlvr_decode.engine.launch import engine_args

    full, adapter = make_pairs(directory, getattr(torch, args.dtype))
    flags: dict[str, Any] = {
        "max_model_len": 256,
        "max_num_seqs": 32,
        "enable_prefix_caching": False,
        "enforce_eager": not args.compile,
    }
    single = LLM(model=str(full.rlvr.fetch()), dtype=args.dtype, **flags)
    pairs = {
        "full": LLM(**engine_args(full, **flags)),
        "adapter": LLM(**engine_args(adapter, **flags)),
    }
    base, rlvr = (
        AutoModelForCausalLM.from_pretrained(checkpoint.fetch(), dtype=torch.float32).eval()
        for checkpoint in (full.base, full.rlvr)
    )
    for name, engine in pairs.items():
        check(name, engine, (base, rlvr), args.dtype)
    arms = {"single": vllm_arm(single)}
    for name, engine in pairs.items():
        arms |= {name: vllm_arm(engine), f"{name} plain": plain(vllm_arm(engine))}
    if args.transformers:
        arms |= {"transformers": one_at_a_time(base, rlvr), "batched": batched(base, rlvr)}
    return arms


def make_pairs(directory: Path, dtype: Any) -> tuple[Any, Any]:
    """A random base with an update of rank 16, as a full pair and as an adapter pair."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from rlvr_decode.lora import write_lora
    from rlvr_decode.matrices import LINEAR_LAYERS
    from rlvr_decode.pair import write_pair
    from rlvr_decode.testing import byte_tokenizer

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE)).to(dtype)
    base, rlvr = directory / "base", directory / "rlvr"
    model.save_pretrained(base)
    factors = {}
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] in LINEAR_LAYERS:
            out, into = layer.weight.shape
            factors[name] = (0.01 * torch.randn(out, RANK), 0.1 * torch.randn(RANK, into))
            with torch.no_grad():
                layer.weight += (factors[name][0] @ factors[name][1]).to(dtype)
    model.save_pretrained(rlvr)
    for checkpoint in (base, rlvr):
        byte_tokenizer().save_pretrained(checkpoint)
    adapter = write_lora(directory / "adapter", factors, scaling=1.0, dtype=dtype)
    return tuple(
        write_pair(directory / name, name=name, base=base, rlvr=update)
        for name, update in (("full", rlvr), ("low-rank", adapter))
    )


def vllm_arm(engine: Any) -> Arm:
    from vllm import TokensPrompt

    from rlvr_decode import Extrapolation

    def run(prompts: list[list[int]], strengths: list[float], new: int) -> list[list[int]]:
        params = [
            Extrapolation(strength=strength).sampling_params(
                temperature=0, max_tokens=new, ignore_eos=True
            )
            for strength in strengths
        ]
        inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        answers = engine.generate(inputs, params, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in answers]

    return run


def plain(arm: Arm) -> Arm:
    """The same requests for rlvr as it is."""
    return lambda prompts, strengths, new: arm(prompts, [0.0] * len(strengths), new)


def one_at_a_time(base: Any, rlvr: Any) -> Arm:
    import torch
    from transformers import LogitsProcessorList, UnbatchedClassifierFreeGuidanceLogitsProcessor

    def run(prompts: list[list[int]], strengths: list[float], new: int) -> list[list[int]]:
        answers = []
        for prompt, strength in zip(prompts, strengths, strict=True):
            tokens = torch.tensor([prompt])
            processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(
                1 + strength, base, unconditional_ids=tokens
            )
            answer = rlvr.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                logits_processor=LogitsProcessorList([processor]),
                do_sample=False,
                max_new_tokens=new,
                eos_token_id=None,
            )
            answers.append(answer[0, len(prompt) :].tolist())
        return answers

    return run


def batched(base: Any, rlvr: Any) -> Arm:
    import torch

    from rlvr_decode import Extrapolation
    from rlvr_decode.hf import generate

    def run(prompts: list[list[int]], strengths: list[float], new: int) -> list[list[int]]:
        settings = [Extrapolation(strength=strength) for strength in strengths]
        options = {"do_sample": False, "max_new_tokens": new, "eos_token_id": None}
        answers = generate(rlvr, base, torch.tensor(prompts), settings, **options)
        return [row[len(prompt) :].tolist() for row, prompt in zip(answers, prompts, strict=True)]

    return run


def workload(requests: int) -> tuple[list[list[int]], list[float]]:
    import torch

    generator = torch.Generator().manual_seed(requests)
    prompts = torch.randint(3, VOCAB, (requests, PROMPT_TOKENS), generator=generator).tolist()
    return prompts, [0.25 * (1 + i % 8) for i in range(requests)]


def check(name: str, engine: Any, models: tuple[Any, Any], dtype: str) -> None:
    """No figures from a pair that answers differently."""
    import torch
    from vllm import TokensPrompt

    from rlvr_decode import Extrapolation

    prompts, strengths = workload(8)
    params = [
        Extrapolation(strength=strength).sampling_params(
            temperature=0, max_tokens=8, ignore_eos=True, logprobs=0
        )
        for strength in strengths
    ]
    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    worst = 0.0
    answers = engine.generate(inputs, params, use_tqdm=False)
    for prompt, strength, answer in zip(prompts, strengths, answers, strict=True):
        (output,) = answer.outputs
        tokens = torch.tensor([[*prompt, *output.token_ids]])
        with torch.no_grad():
            log_base, log_rlvr = (m(tokens).logits[0].log_softmax(-1) for m in models)
        rows = ((1 + strength) * log_rlvr - strength * log_base).log_softmax(-1)
        for row, token, found in zip(
            rows[len(prompt) - 1 : -1], output.token_ids, output.logprobs, strict=True
        ):
            if dtype == "float32" and row.argmax() != token:
                raise SystemExit(f"{name} chose another token than transformers: no figures")
            error = abs(row[token].item() - found[token].logprob)
            worst = max(worst, error / (1 + 2 * strength))
    print(f"{name}: log-probabilities within {worst:.2g} · (1 + 2 · strength) of transformers'")
    if worst > ROUNDING[dtype]:
        raise SystemExit(f"{name} differs from transformers by {worst:.2g}: no figures")


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
    """What an arm took for whole requests, and for their first token alone."""

    request: Clock
    first: Clock

    @property
    def step(self) -> Clock:
        """One step of decoding."""
        wall, cpu = self.request.since(self.first)
        return Clock(wall / (NEW_TOKENS - 1), cpu / (NEW_TOKENS - 1))


def measure(arms: dict[str, Arm], concurrency: int, rounds: int) -> dict[str, list[Round]]:
    """The rounds of each arm; the arms take turns."""
    taken: dict[str, list[Round]] = {name: [] for name in arms}
    for _ in range(rounds + 1):
        for name, arm in arms.items():
            prompts, strengths = workload(at_once(name, concurrency))
            gc.collect()
            times = [Clock.read()]
            for new in (NEW_TOKENS, 1):
                arm(prompts, strengths, new)
                times.append(Clock.read())
            taken[name].append(Round(times[1].since(times[0]), times[2].since(times[1])))
    return {name: values[1:] for name, values in taken.items()}  # the first round warms up


def at_once(name: str, concurrency: int) -> int:
    """The rate of `transformers` does not depend on how many requests wait; two are short."""
    return min(concurrency, 2) if name == "transformers" else concurrency


def report(taken: dict[str, list[Round]], concurrency: int, args: argparse.Namespace) -> None:
    rates = {
        name: [at_once(name, concurrency) * NEW_TOKENS / r.request.wall for r in rounds]
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
        print(f"{name:14}{concurrency:9}{rate[name]:10.1f}{spread:>16}", end="")
        print(f"{rate['single'] / rate[name]:11.2f}{wall:10.2f}{cpu:8.2f}", flush=True)
    record = {
        "concurrency": concurrency,
        "dtype": args.dtype,
        "compiled": args.compile,
        "tokens_per_second": {name: [round(v, 2) for v in rates[name]] for name in rates},
        "decode_step_ms": {n: [round(1e3 * wall, 3) for wall, _ in steps[n]] for n in steps},
        "decode_step_cpu_ms": {n: [round(1e3 * cpu, 3) for _, cpu in steps[n]] for n in steps},
        **environment(),
    }
    args.out.parent.mkdir(exist_ok=True)
    with args.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def environment() -> dict[str, Any]:
    import torch
    import transformers
    import vllm

    commit = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return {
        "device": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "vllm": vllm.__version__,
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
    }


if __name__ == "__main__":
    main()
