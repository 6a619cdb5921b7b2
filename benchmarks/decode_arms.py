"""What `decode.py` times: ways to answer the same requests with the same pair.

An arm turns prompts, a strength for each, and a number into so many greedy tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT_TOKENS, VOCAB, RANK = 64, 32000, 16
SHAPE: dict[str, Any] = {
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
LOOP_LOGPROBS = 50  # of the released scripts
Arm = Callable[[list[list[int]], list[float], int], list[list[int]]]


def make_pairs(
    directory: Path, dtype: Any, *, shape: dict[str, Any] = SHAPE, rank: int = RANK
) -> tuple[Any, Any]:
    """A random base with an update of this rank, as a full pair and as an adapter pair."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    from rlvr_decode.lora import write_lora
    from rlvr_decode.matrices import LINEAR_LAYERS
    from rlvr_decode.pair import write_pair
    from rlvr_decode.testing import byte_tokenizer

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        Qwen3Config(**shape), dtype=dtype
    )
    base, rlvr = directory / "base", directory / "rlvr"
    model.save_pretrained(base)
    factors = {}
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] in LINEAR_LAYERS:
            out, into = layer.weight.shape
            factors[name] = (0.01 * torch.randn(out, rank), 0.1 * torch.randn(rank, into))
            with torch.no_grad():
                layer.weight += (factors[name][0] @ factors[name][1]).to(dtype)
    model.save_pretrained(rlvr)
    for checkpoint in (base, rlvr):
        byte_tokenizer().save_pretrained(checkpoint)
    adapter = write_lora(directory / "adapter", factors, scaling=1.0, dtype=dtype)
    return (
        write_pair(directory / "full", name="full", base=base, rlvr=rlvr),
        write_pair(directory / "low-rank", name="low-rank", base=base, rlvr=adapter),
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
            tokens: Any = torch.tensor([prompt])
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
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": new, "eos_token_id": None}
        answers = generate(rlvr, base, torch.tensor(prompts), settings, **options)
        return [row[len(prompt) :].tolist() for row, prompt in zip(answers, prompts, strict=True)]

    return run


def two_engines(base: Any, rlvr: Any) -> Arm:
    """The direction paper's published loop, re-implemented from its description.

    Two engines with prefix caching; for every token one call of each, for one token and the log-
    probs of its `LOOP_LOGPROBS` likeliest, which are combined outside. The candidates are rlvr's;
    one that base does not list gets the least of base's. Here for all requests at once, greedy and
    at every position; the paper's gate decides which positions, and costs the same calls.
    """
    from vllm import SamplingParams, TokensPrompt

    params = SamplingParams(
        temperature=0, max_tokens=1, logprobs=LOOP_LOGPROBS, ignore_eos=True, detokenize=False
    )

    def ask(engine: Any, texts: list[list[int]]) -> list[dict[int, Any]]:
        inputs = [TokensPrompt(prompt_token_ids=text) for text in texts]
        answers = engine.generate(inputs, params, use_tqdm=False)
        return [answer.outputs[0].logprobs[0] for answer in answers]

    def choose(candidates: dict[int, Any], known: dict[int, Any], strength: float) -> int:
        least = min(each.logprob for each in known.values())

        def score(token: int) -> float:
            of_base = known[token].logprob if token in known else least
            return float((1 + strength) * candidates[token].logprob - strength * of_base)

        return max(candidates, key=score)

    def run(prompts: list[list[int]], strengths: list[float], new: int) -> list[list[int]]:
        texts = [list(prompt) for prompt in prompts]
        for _ in range(new):
            rows = zip(ask(rlvr, texts), ask(base, texts), strengths, strict=True)
            for text, row in zip(texts, list(rows), strict=True):
                text.append(choose(*row))
        return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]

    return run


def workload(requests: int, length: int = PROMPT_TOKENS) -> tuple[list[list[int]], list[float]]:
    """Random prompts, and strengths from 0.25 to 2."""
    import torch

    generator = torch.Generator().manual_seed(requests)
    prompts = torch.randint(3, VOCAB, (requests, length), generator=generator).tolist()
    return prompts, [0.25 * (1 + i % 8) for i in range(requests)]
