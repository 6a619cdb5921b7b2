"""What `decode.py` requires before it times anything: the right answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decode_arms import LOOP_LOGPROBS, Arm, workload
from findings import Finding

# How far a log-probability may lie from float32's: 16 bits round logits of this model by 0.02,
# and a difference that is taken `strength` times adds as much each time.
ROUNDING = {"float32": 1e-3, "bfloat16": 0.05}


def check(name: str, engine: Any, models: Sequence[Any], dtype: str) -> None:
    """No figures from a pair that answers differently."""
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
        rows = exact(models, prompt, list(output.token_ids), strength)
        for row, token, told in zip(rows, output.token_ids, output.logprobs, strict=True):
            if dtype == "float32" and row.argmax() != token:
                raise SystemExit(f"{name} chose another token than transformers: no figures")
            error = abs(row[token].item() - told[token].logprob)
            worst = max(worst, error / (1 + 2 * strength))
    print(f"{name}: log-probabilities within {worst:.2g} · (1 + 2 · strength) of transformers'")
    if worst > ROUNDING[dtype]:
        raise SystemExit(f"{name} differs from transformers by {worst:.2g}: no figures")


def exact(models: Sequence[Any], prompt: list[int], answer: list[int], strength: float) -> Any:
    """Extrapolated log-probs [T, V] at each token of an answer, by transformers."""
    import torch

    tokens = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        log_base, log_rlvr = (model(tokens).logits[0].log_softmax(-1) for model in models)
    rows = ((1 + strength) * log_rlvr - strength * log_base).log_softmax(-1)
    return rows[len(prompt) - 1 : -1]


def agreement(loop: Arm, models: Sequence[Any], dtype: str) -> Finding:
    """How often the loop, which sees but its candidates, chooses the right token."""
    prompts, strengths = workload(8)
    right = []
    for prompt, strength, answer in zip(
        prompts, strengths, loop(prompts, strengths, 8), strict=True
    ):
        right += (exact(models, prompt, answer, strength).argmax(-1).numpy() == answer).tolist()
    return Finding(
        what=f"the paper's loop, {dtype}, strengths 0.25 to 2: right tokens",
        rival="transformers (ours: all)" if dtype == "float32" else "transformers in float32",
        values=[100 * sum(right) / len(right)],
        unit=f"% of {len(right)}",
        note=f"the loop draws from rlvr's {LOOP_LOGPROBS} likeliest tokens only; a random pair's "
        "distributions are flat, so this is its worst case",
    )
