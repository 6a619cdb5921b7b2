"""Tokens per second of a pair: in vLLM, against one model in vLLM and two in transformers.

    python benchmarks/decode.py [--dtype float32 --concurrency 1 16 --rounds 5]

All arms run in one process on the same random Qwen3 pair (104 M parameters, an update of rank
16), taking turns, so that ratios are of the same minutes. `full` is the pair as two checkpoints,
`adapter` as base and a LoRA. `transformers` is its own two-model processor, which takes one
request at a time; `batched` is `rlvr_decode.hf.generate`, all at once. First every arm answers the
same prompts greedily at the same strengths; if one token differs (float32), no figure is printed.
Results are appended to benchmarks/results/decode.jsonl.
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
from typing import Any

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
Arm = Callable[[list[list[int]], list[float]], list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with tempfile.TemporaryDirectory() as directory:
        os.environ.setdefault("VLLM_CACHE_ROOT", directory)
        arms = make_arms(Path(directory), args.dtype)
        if args.dtype == "float32":
            gate(arms)
        print(f"\n{'':14}{'requests':>9}{'tokens/s':>10}{'min–max':>16}{'× single time':>15}")
        for concurrency in args.concurrency:
            rates = measure(arms, concurrency, args.rounds)
            report(rates, concurrency, args)


def make_arms(directory: Path, dtype: str) -> dict[str, Arm]:
    """Each arm turns prompts and strengths into greedy tokens."""
    import torch
    from transformers import AutoModelForCausalLM
    from vllm import LLM

    from rlvr_decode.engine.launch import engine_args

    full, adapter = make_pairs(directory, getattr(torch, dtype))
    flags: dict[str, Any] = {
        "max_model_len": 256,
        "max_num_seqs": 32,
        "enable_prefix_caching": False,
        "enforce_eager": True,
    }
    engines = {
        "single": LLM(model=str(full.rlvr.fetch()), dtype=dtype, **flags),
        "full": LLM(**engine_args(full, **flags)),
        "adapter": LLM(**engine_args(adapter, **flags)),
    }
    base, rlvr = (
        AutoModelForCausalLM.from_pretrained(checkpoint.fetch()).eval()
        for checkpoint in (full.base, full.rlvr)
    )
    return {name: vllm_arm(engine) for name, engine in engines.items()} | {
        "transformers": one_at_a_time(base, rlvr),
        "batched": batched(base, rlvr),
    }


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

    def run(prompts: list[list[int]], strengths: list[float]) -> list[list[int]]:
        params = [
            Extrapolation(strength=strength).sampling_params(
                temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True
            )
            for strength in strengths
        ]
        inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        answers = engine.generate(inputs, params, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in answers]

    return run


def one_at_a_time(base: Any, rlvr: Any) -> Arm:
    import torch
    from transformers import LogitsProcessorList, UnbatchedClassifierFreeGuidanceLogitsProcessor

    def run(prompts: list[list[int]], strengths: list[float]) -> list[list[int]]:
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
                max_new_tokens=NEW_TOKENS,
                eos_token_id=None,
            )
            answers.append(answer[0, len(prompt) :].tolist())
        return answers

    return run


def batched(base: Any, rlvr: Any) -> Arm:
    import torch

    from rlvr_decode import Extrapolation
    from rlvr_decode.hf import generate

    def run(prompts: list[list[int]], strengths: list[float]) -> list[list[int]]:
        settings = [Extrapolation(strength=strength) for strength in strengths]
        options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None}
        answers = generate(rlvr, base, torch.tensor(prompts), settings, **options)
        return [row[len(prompt) :].tolist() for row, prompt in zip(answers, prompts, strict=True)]

    return run


def workload(requests: int) -> tuple[list[list[int]], list[float]]:
    import torch

    generator = torch.Generator().manual_seed(requests)
    prompts = torch.randint(3, VOCAB, (requests, PROMPT_TOKENS), generator=generator).tolist()
    return prompts, [0.25 * (1 + i % 8) for i in range(requests)]


def gate(arms: dict[str, Arm]) -> None:
    """No figures from an arm that answers differently."""
    prompts, strengths = workload(4)
    expected = arms["transformers"](prompts, strengths)
    for name in ("full", "adapter", "batched"):
        if arms[name](prompts, strengths) != expected:
            raise SystemExit(f"{name} differs from transformers' own processor: no figures")


def measure(arms: dict[str, Arm], concurrency: int, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each arm, by round; the arms take turns."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds + 1):
        for name, arm in arms.items():
            # Its rate does not depend on how many requests wait; two of them keep a round short.
            requests = min(concurrency, 2) if name == "transformers" else concurrency
            prompts, strengths = workload(requests)
            gc.collect()
            begin = time.perf_counter()
            arm(prompts, strengths)
            rates[name].append(requests * NEW_TOKENS / (time.perf_counter() - begin))
    return {name: values[1:] for name, values in rates.items()}  # the first round warms up


def report(rates: dict[str, list[float]], concurrency: int, args: argparse.Namespace) -> None:
    single = statistics.median(rates["single"])
    for name, values in rates.items():
        median = statistics.median(values)
        spread = f"{min(values):.1f}–{max(values):.1f}"
        print(f"{name:14}{concurrency:9}{median:10.1f}{spread:>16}{single / median:15.2f}")
    record = {
        "concurrency": concurrency,
        "dtype": args.dtype,
        "tokens_per_second": {name: [round(v, 2) for v in rates[name]] for name in rates},
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
