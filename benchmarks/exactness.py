"""The same answers as transformers' two-model processor: greedy tokens and their log-probs, fp32.

    python benchmarks/exactness.py [--requests 40 --tokens 24]

`UnbatchedClassifierFreeGuidanceLogitsProcessor` with a scale of 1 + strength computes the same
distribution, for one request at a time. Ours answers all requests in one batch, each at another
strength than its neighbours, with some prompts sharing a prefix: a full pair and an adapter pair of
small random Qwen3 models. What is found here is right or wrong, so no gate comes first.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from findings import Finding, add_argument, tell

STRENGTHS = (-0.5, 0.0, 0.5, 1.0, 2.0)
RIVAL = "transformers' processor"
Answer = tuple[list[int], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=24)
    add_argument(parser)
    args = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    work = [(prompt(i), STRENGTHS[i % len(STRENGTHS)]) for i in range(args.requests)]
    found: list[Finding] = []
    with tempfile.TemporaryDirectory() as directory:
        for kind, pair, rlvr in pairs(Path(directory)):
            ours = by_vllm(pair, work, args.tokens)
            theirs = by_transformers(pair.base.fetch(), rlvr, work, args.tokens)
            same, error = compare(ours, theirs)
            what = f"{kind} pair, greedy in float32, strengths −0.5 to 2 in one batch"
            found += [
                Finding(
                    what=f"{what}: the same tokens",
                    rival=RIVAL,
                    values=[100 * same],
                    unit=f"% of {args.requests * args.tokens}",
                    at_least=100,
                ),
                Finding(
                    what=f"{what}: largest difference of a log-prob",
                    rival=RIVAL,
                    values=[error],
                    unit="nats",
                    at_most=1e-3,
                ),
            ]
    tell(found, args.findings)


def pairs(directory: Path) -> Iterator[tuple[str, Any, Path]]:
    """A pair of each kind, and the checkpoint that its rlvr is for transformers."""
    from rlvr_decode.pair import write_pair
    from rlvr_decode.testing import make_adapter, make_checkpoints

    base, rlvr = make_checkpoints(directory)
    adapter, merged = make_adapter(directory, base)
    for kind, update, checkpoint in (("full", rlvr, rlvr), ("adapter", adapter, merged)):
        pair = write_pair(directory / f"{kind}-pair", name=kind, base=base, rlvr=update)
        yield kind, pair, checkpoint


def prompt(number: int) -> list[int]:
    """Every other prompt begins with the same 64 tokens; their lengths differ."""
    import torch

    generator = torch.Generator().manual_seed(number)
    own = torch.randint(3, 259, (1 + 13 * number % 60,), generator=generator).tolist()
    return [*(range(10, 74) if number % 2 else ()), *own]


def by_vllm(pair: Any, work: list[tuple[list[int], float]], tokens: int) -> list[Answer]:
    from vllm import LLM, TokensPrompt

    from rlvr_decode import Extrapolation
    from rlvr_decode.engine.launch import engine_args

    flags = {"max_model_len": 256, "max_num_seqs": 64, "enforce_eager": True, "block_size": 32}
    engine: Any = LLM(**engine_args(pair, **flags))
    params = [
        Extrapolation(strength=strength).sampling_params(
            temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=0
        )
        for _, strength in work
    ]
    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt, _ in work]
    answers = []
    for answer in engine.generate(inputs, params, use_tqdm=False):
        (output,) = answer.outputs
        chosen = zip(output.token_ids, output.logprobs, strict=True)
        answers.append((list(output.token_ids), [probs[token].logprob for token, probs in chosen]))
    return answers


def by_transformers(
    base: Path, rlvr: Path, work: list[tuple[list[int], float]], tokens: int
) -> list[Answer]:
    import torch
    from transformers import (
        AutoModelForCausalLM,
        LogitsProcessorList,
        UnbatchedClassifierFreeGuidanceLogitsProcessor,
    )

    models: list[Any] = [AutoModelForCausalLM.from_pretrained(path) for path in (base, rlvr)]
    answers = []
    for prompt, strength in work:
        ids: Any = torch.tensor([prompt])
        processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(
            1 + strength, models[0], unconditional_ids=ids
        )
        answer = models[1].generate(
            ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=LogitsProcessorList([processor]),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=None,
            output_scores=True,
            return_dict_in_generate=True,
        )
        chosen = answer.sequences[0, len(prompt) :].tolist()
        scores = zip(answer.scores, chosen, strict=True)
        answers.append((chosen, [row[0].log_softmax(-1)[token].item() for row, token in scores]))
    return answers


def compare(ours: list[Answer], theirs: list[Answer]) -> tuple[float, float]:
    """The share of tokens before the first that differs, and the largest error among them."""
    same, errors = 0, [0.0]
    for (tokens, logprobs), (wanted, exact) in zip(ours, theirs, strict=True):
        for token, logprob, other, value in zip(tokens, logprobs, wanted, exact, strict=True):
            if token != other:
                break
            same += 1
            errors.append(abs(logprob - value))
    return same / sum(len(tokens) for tokens, _ in theirs), max(errors)


if __name__ == "__main__":
    main()
