"""What it costs that an adapter pair's weights in memory are rlvr's, rounded to the engine's dtype.

    python benchmarks/folding.py [--pair smollm2]

The engine keeps W + B A, rounded, and takes B A from it again for base (`engine/stacked.py`). Here
both models are computed in float32 with the weights so rounded, and compared with weights that
never were; beside it stands what bfloat16 costs anyway: activations in bfloat16.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlvr_decode.lora import read_factors
from rlvr_decode.pair import Pair

QUESTIONS = (
    "What is 12 * 7 + 3?",
    "Compute 45 - 18 / 3.",
    "What is 9*9-11?",
    "How many r are in strawberry?",
    "Tell me about the sea.",
    "Write a poem about trees.",
)
Factors = Mapping[str, tuple[Tensor, Tensor]]


def main() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pair", default="smollm2", help="an adapter pair")
    pair = Pair.open(parser.parse_args().pair)
    factors = read_factors(pair.rlvr.fetch())
    tokenizer = AutoTokenizer.from_pretrained(pair.tokenizer_directory)
    inputs = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        for question in QUESTIONS
    ]
    exact_base: Any = AutoModelForCausalLM.from_pretrained(pair.base.fetch(), dtype=torch.float32)
    exact_rlvr = changed(exact_base, factors, 1)
    kept_rlvr = rounded(exact_rlvr)
    kept_base = changed(kept_rlvr, factors, -1)
    base, rlvr = logprobs(exact_base, inputs), logprobs(exact_rlvr, inputs)
    delta, half = rlvr - base, copy.deepcopy(exact_base).to(torch.bfloat16)

    print(f"{pair.name}: KL(rlvr || base) {divergence(rlvr, base):.2g} nats a token")
    for name, exact, model in (
        ("base, from rounded weights", base, kept_base),
        ("rlvr, from rounded weights", rlvr, kept_rlvr),
        ("base, all in bfloat16", base, half),
    ):
        print(f"KL to {name}: {divergence(exact, logprobs(model, inputs)):.2g}")
    error = logprobs(kept_rlvr, inputs) - logprobs(kept_base, inputs) - delta
    print(f"rms of delta {rms(delta, rlvr):.2g}, of its error {rms(error, rlvr):.2g}")


def changed(model: Any, factors: Factors, sign: int) -> Any:
    """A copy with sign · B A added to its layers."""
    model = copy.deepcopy(model)
    for name, (up_OR, down_RI) in factors.items():
        model.get_submodule(name).weight.data += sign * (up_OR @ down_RI)
    return model


def rounded(model: Any) -> Any:
    """A copy whose weights are numbers of bfloat16, and which computes in float32."""
    return copy.deepcopy(model).to(torch.bfloat16).float()


@torch.no_grad()
def logprobs(model: Any, inputs: list[Tensor]) -> Tensor:
    """Of every token after every prefix of every input, [tokens, vocabulary], float32."""
    return torch.cat([model(ids).logits[0].float().log_softmax(-1) for ids in inputs])


def divergence(first: Tensor, second: Tensor) -> float:
    """KL(first || second), the mean over positions, in nats."""
    return float((first.exp() * (first - second)).sum(-1).mean())


def rms(values: Tensor, weights: Tensor) -> float:
    """Over tokens as often as `weights` draws them, and positions."""
    return float((weights.exp() * values**2).sum(-1).mean() ** 0.5)


if __name__ == "__main__":
    main()
