"""How many drafted tokens the pair accepts: rlvr alone drafting, and n-grams of the prompt.

    python benchmarks/speculation.py [--requests 9 --tokens 12]

Speculation needs vLLM's model runner V2, which on a CPU runs in Triton's interpreter, hundreds of
times slower: no time is measured here. Tokens per step bound the speed-up from above; what is left
of it depends on what a draft costs. The bundled pair on its task, at strengths 0.5, 1 and 2. First
the greedy answers must be the exact ones, or nothing is reported.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from decode_check import exact
from findings import HERE, Finding, add_argument, tell

V2_BACKEND = HERE.parent / "tests" / "engine" / "v2_backend"
STRENGTHS = (0.5, 1.0, 2.0)
DRAFTED = 3
COUNTERS = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=12)
    add_argument(parser)
    args = parser.parse_args()
    interpret_triton()
    from rlvr_decode.pair import Pair

    pair = Pair.open("tiny")
    drafters: dict[str, dict[str, Any]] = {
        "rlvr drafts": {"method": "draft_model", "model": str(pair.rlvr.fetch())},
        "n-grams draft": {"method": "ngram", "prompt_lookup_max": 3},
    }
    found = []
    with tempfile.TemporaryDirectory() as directory:
        os.environ.setdefault("VLLM_CACHE_ROOT", directory)
        for name, drafter in drafters.items():
            found += measure(name, pair, drafter, args.requests, args.tokens)
    tell(found, args.findings)


def interpret_triton() -> None:
    """Model runner V2 on a CPU, as the tests have it; before Triton looks for its backends."""
    sys.path.insert(0, str(V2_BACKEND))
    os.environ |= {
        "PYTHONPATH": str(V2_BACKEND),
        "TRITON_INTERPRET": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    import_module("interpreter_repair").repair_interpreter()


def measure(
    name: str, pair: Any, drafter: dict[str, Any], requests: int, tokens: int
) -> list[Finding]:
    from vllm import LLM

    from rlvr_decode.engine.launch import engine_args
    from rlvr_decode.training.tasks.addition import Addition

    engine = LLM(
        **engine_args(
            pair,
            speculative_config={**drafter, "num_speculative_tokens": DRAFTED},
            enforce_eager=True,
            max_model_len=128,
            max_num_seqs=requests,
            block_size=32,
            disable_log_stats=False,
        )
    )
    task = Addition()
    prompts = [task.prompt(i, seed=7, split="held_out").text for i in range(requests)]
    found, before = [], dict.fromkeys(COUNTERS, 0.0)
    for how, temperature in (("greedy", 0.0), ("temperature 1", 1.0)):
        answers = ask(engine, prompts, temperature, tokens)
        if temperature == 0:
            check(pair, answers)
        after = counters(engine)
        drafts, drafted, accepted = (after[key] - before[key] for key in COUNTERS)
        before = after
        if not drafted:
            raise SystemExit(f"{name}: nothing was drafted, so nothing is known")
        what = f"{name} {DRAFTED} tokens on add3, strengths 0.5 to 2, {how}"
        found += [
            Finding(
                what=f"{what}: accepted",
                rival="what was drafted",
                values=[100 * accepted / drafted],
                unit="%",
                note="the answers to sums: their first token, which is never a draft, all but "
                "decides the rest",
            ),
            Finding(
                what=f"{what}: tokens a step",
                rival="one without drafts",
                values=[1 + accepted / drafts],
                unit="tokens",
                note="bounds the speed-up from above; on a CPU, runner V2 is interpreted, so no "
                "time is measured (Speculative Ensemble, arXiv 2502.01662: 1.11 to 2.23)",
            ),
        ]
    engine.llm_engine.engine_core.shutdown()
    return found


def ask(engine: Any, prompts: list[str], temperature: float, tokens: int) -> list[Any]:
    """Answers, with strengths taking turns."""
    from rlvr_decode import Extrapolation

    params = [
        Extrapolation(strength=STRENGTHS[i % len(STRENGTHS)]).sampling_params(
            temperature=temperature, max_tokens=tokens, ignore_eos=True
        )
        for i in range(len(prompts))
    ]
    answers: list[Any] = engine.generate(prompts, params, use_tqdm=False)
    return answers


def check(pair: Any, answers: list[Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    models = [
        AutoModelForCausalLM.from_pretrained(Path(each.fetch()), dtype=torch.float32)
        for each in (pair.base, pair.rlvr)
    ]
    for i, answer in enumerate(answers):
        tokens = list(answer.outputs[0].token_ids)
        rows = exact(models, answer.prompt_token_ids, tokens, STRENGTHS[i % len(STRENGTHS)])
        if rows.argmax(-1).tolist() != tokens:
            raise SystemExit("another token than transformers': no figures")


def counters(engine: Any) -> dict[str, float]:
    names = {f"vllm:spec_decode_{key}": key for key in COUNTERS}
    return {names[m.name]: float(m.value) for m in engine.get_metrics() if m.name in names}


if __name__ == "__main__":
    main()
