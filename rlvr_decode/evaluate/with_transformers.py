"""Sampling with transformers: exact, on any device, and the quickest for small pairs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlvr_decode.evaluate.arms import Arm
from rlvr_decode.evaluate.decode import Recipe, decode
from rlvr_decode.evaluate.sampling import Question, Response, rendered
from rlvr_decode.lora import read_factors
from rlvr_decode.pair import Pair

BATCH = 1024
"""Sequences that run together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """A pair in memory."""

    base: PreTrainedModel
    rlvr: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop: tuple[int, ...]


def open_models(pair: Pair) -> Models:
    """Both models, on the GPU if there is one: in float32 on a CPU, as stored elsewhere."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "auto" if device == "cuda" else torch.float32

    def open_(directory: Path) -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
        model.to(device)  # type: ignore[arg-type]
        model.train(False)
        return model

    base = open_(pair.base.fetch())
    if pair.rlvr.kind == "adapter":
        rlvr = copy.deepcopy(base)
        with torch.no_grad():
            for layer, (left_MR, right_RN) in read_factors(pair.rlvr.fetch()).items():
                weight = rlvr.get_parameter(f"{layer}.weight")
                weight.add_((left_MR @ right_RN).to(weight))
    else:
        rlvr = open_(pair.rlvr.fetch())
    return Models(
        base=base,
        rlvr=rlvr,
        tokenizer=AutoTokenizer.from_pretrained(pair.tokenizer_directory, trust_remote_code=False),
        stop=pair.stop_token_ids,
    )


class TransformersSampler:
    """Answers as one variant of a pair, with both models in this process."""

    def __init__(self, models: Models, *, max_tokens: int, batch: int = BATCH) -> None:
        self._models = models
        self._max_tokens, self._batch = max_tokens, batch

    def sample(
        self, questions: Sequence[Question], arm: Arm, *, samples: int, seed: int
    ) -> list[list[Response]]:
        tokenizer = self._models.tokenizer
        prompts = [
            tokenizer.encode(rendered(question, tokenizer))
            for question in questions
            for _ in range(samples)
        ]
        responses: list[Response] = []
        for start in range(0, len(prompts), self._batch):
            part = prompts[start : start + self._batch]
            responses += self._part(part, arm, seed=seed + start)
        return [responses[at : at + samples] for at in range(0, len(responses), samples)]

    def _part(self, prompts: list[list[int]], arm: Arm, *, seed: int) -> list[Response]:
        drawn = decode(
            self._models.rlvr,
            self._models.base,
            prompts,
            self._recipe(arm),
            stop=self._models.stop,
            max_tokens=self._max_tokens,
            seed=seed,
        )
        texts = self._models.tokenizer.batch_decode(
            [each.tokens for each in drawn], skip_special_tokens=True
        )
        return [
            Response(
                text=text,
                length=len(each.tokens),
                finished=each.finished,
                entropy=each.entropy,
                rate=each.rate if arm.extrapolation.gated else None,
            )
            for text, each in zip(texts, drawn, strict=True)
        ]

    def _recipe(self, arm: Arm) -> Recipe:
        permutation = None
        if arm.variant == "vocabulary":
            vocabulary = self._models.rlvr.config.vocab_size
            generator = torch.Generator().manual_seed(0)
            permutation = torch.randperm(vocabulary, generator=generator)
        return Recipe(
            extrapolation=arm.extrapolation, sampling=arm.sampling, permutation=permutation
        )

    def close(self) -> None:
        del self._models
