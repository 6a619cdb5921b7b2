"""The two models of SOE behind one small protocol: texts in, texts or hidden states out.

Only text passes between teacher and student, so their tokenizers may differ.

Legend: N texts, T tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlvr_decode.evaluate.sampling import rendered
from rlvr_decode.training.rollout.rollout import TransformersRollout
from rlvr_decode.training.run.directory import draw_seed
from rlvr_decode.training.tasks.task import Prompt

T = TypeVar("T")


class Sample(NamedTuple):
    """A continuation, and whether the model ended it by itself."""

    text: str
    finished: bool


class Generator(Protocol):
    """A model that continues texts and shows what it thinks of them."""

    def render(self, prompt: Prompt) -> str:
        """A question as this model is to read it."""
        ...

    def generate(
        self, texts: Sequence[str], *, n: int, max_tokens: int, temperature: float, seed: int
    ) -> list[list[Sample]]:
        """n continuations of each text; temperature 0 is greedy, and a seed repeats itself."""
        ...

    def hidden(self, prefixes: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """One vector per pair: the mean hidden state over the continuation's tokens, [N, D]."""
        ...


class TransformersGenerator:
    """A `transformers` model as a `Generator`, `batch` rows at a time.

    layer  which hidden states to pool, as `output_hidden_states` numbers them; −1 is the last,
           after the final norm. The paper's layer is not known.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch: int = 64,
        layer: int = -1,
    ) -> None:
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__}: needs a fast tokenizer (text offsets)")
        self.model = model
        self.tokenizer = tokenizer
        self.batch = batch
        self.layer = layer
        self._rollout = TransformersRollout(model=model, tokenizer=tokenizer)

    def render(self, prompt: Prompt) -> str:
        return rendered(prompt, self.tokenizer)

    def generate(
        self, texts: Sequence[str], *, n: int, max_tokens: int, temperature: float, seed: int
    ) -> list[list[Sample]]:
        samples: list[list[Sample]] = []
        for start, chunk in _chunks(texts, max(1, self.batch // n)):
            rollouts = self._rollout.sample(
                chunk,
                group=n,
                max_new_tokens=max_tokens,
                temperature=temperature,
                seed=draw_seed("generate", seed, start),
            )
            flat = list(map(Sample, rollouts.texts, rollouts.finished_B.tolist()))
            samples += [flat[at : at + n] for at in range(0, len(flat), n)]
        return samples

    @torch.no_grad()
    def hidden(self, prefixes: Sequence[str], continuations: Sequence[str]) -> Tensor:
        pairs = list(zip(prefixes, continuations, strict=True))
        return torch.cat([self._pool(chunk) for _, chunk in _chunks(pairs, self.batch)])

    def _pool(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        nn.Module.eval(self.model)
        encoded = self.tokenizer(
            [prefix + continuation for prefix, continuation in pairs],
            return_tensors="pt",
            return_offsets_mapping=True,
            padding=True,
            padding_side="right",
        )
        begins_N1 = torch.tensor([[len(prefix)] for prefix, _ in pairs])
        start_NT, end_NT = encoded.offset_mapping.unbind(-1)
        # Special tokens span no text; one that straddles the seam belongs to the continuation.
        pooled_NT = (end_NT > start_NT) & (end_NT > begins_N1) & encoded.attention_mask.bool()
        counts_N = pooled_NT.sum(1)
        if not counts_N.all():
            text = pairs[int(counts_N.argmin())][1]
            raise ValueError(f"continuation {text!r} has no tokens to pool; leave it out")
        device = self.model.device
        output = self.model(
            input_ids=encoded.input_ids.to(device),
            attention_mask=encoded.attention_mask.to(device),
            output_hidden_states=True,
            logits_to_keep=1,
            use_cache=False,
        )
        hidden_NTD = output.hidden_states[self.layer].double()
        weight_NT = pooled_NT.to(device) / counts_N[:, None].to(device)
        mean_ND: Tensor = (weight_NT.unsqueeze(1).double() @ hidden_NTD).squeeze(1)
        return mean_ND.cpu()


def _chunks(items: Sequence[T], size: int) -> Iterator[tuple[int, Sequence[T]]]:
    for start in range(0, len(items), size):
        yield start, items[start : start + size]
