"""Rollouts: responses sampled from the policy, with the log-probabilities they were sampled at.

B responses, P prompt tokens (padded on the left), T response tokens (padded on the right),
V vocabulary, D hidden width, N rows still running.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlvr_decode.draws import draw_tokens
from rlvr_decode.kv_cache import roomy_cache
from rlvr_decode.training.rollout.padding import positions


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollouts:
    """Sampled responses; the `group` responses of one prompt are neighbours.

    mask_BT is true on response tokens, the end-of-sequence token included; logp_BT is the
    sampler's log p of each (fp32, 0 where masked); finished_B tells who stopped by themselves.
    hidden_BTD, if the sampler keeps it, is the hidden state that each token was drawn from.
    """

    prompt_BP: Tensor
    prompt_mask_BP: Tensor
    response_BT: Tensor
    mask_BT: Tensor
    logp_BT: Tensor
    finished_B: Tensor
    texts: list[str]
    hidden_BTD: Tensor | None = None

    def select(self, rows_B: Tensor) -> Rollouts:
        """Some of the responses, by number."""
        tensors = {name: value[rows_B] for name, value in self.tensors().items()}
        return Rollouts(texts=[self.texts[row] for row in rows_B.tolist()], **tensors)

    def tensors(self) -> dict[str, Tensor]:
        """All but the texts, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if torch.is_tensor(value)}


class RolloutError(RuntimeError):
    """An engine has stalled or died."""


class RolloutEngine(Protocol):
    """Whatever can sample from the policy."""

    @property
    def exact(self) -> bool:
        """Whether its log-probs are those that the trainer computes."""
        ...

    def refresh(self) -> None:
        """Take over the policy as it is now."""
        ...

    def close(self) -> None:
        """Give back what the engine holds beside the policy."""
        ...

    def sample(
        self,
        prompts: Sequence[str],
        *,
        group: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        first: int = 0,
    ) -> Rollouts:
        """`group` responses to each prompt; the same seed gives the same ones.

        first  number of the first prompt. What is drawn for a prompt depends on the seed and its
               number, and on no other prompt, so a batch may be divided over processes.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersRollout:
    """Samples with the training model itself: one batch, a KV cache, finished rows dropped."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layer: int | None = None
    """Keep the hidden states of this layer, as `output_hidden_states` counts; None keeps none."""
    exact: bool = True

    def refresh(self) -> None:
        """Nothing: the policy itself samples."""

    def close(self) -> None:
        """Nothing."""

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        *,
        group: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        first: int = 0,
    ) -> Rollouts:
        """Temperature 0 is greedy, and its log-probabilities are the model's at temperature 1."""
        self.model.train(False)
        device = self.model.device
        ids = encode(prompts, self.tokenizer, self.model.config, max_new_tokens=max_new_tokens)
        tokens, mask = (each.to(device) for each in padded(ids, self.tokenizer))
        prompt_BP, prompt_mask_BP = (each.repeat_interleave(group, 0) for each in (tokens, mask))
        generators = [
            torch.Generator(device).manual_seed(prompt_seed(seed, first + number))
            for number in range(len(prompts))
        ]
        stop = stop_ids(self.model).to(device)
        shape = (len(prompt_BP), max_new_tokens)
        response_BT = torch.full(shape, self.tokenizer.pad_token_id, device=device)
        logp_BT = torch.zeros(shape, device=device)
        mask_BT = torch.zeros(shape, dtype=torch.bool, device=device)
        hidden_BTD = None

        cache = roomy_cache(self.model.config)
        running_N = torch.arange(len(prompt_BP), device=device)
        for step in range(max_new_tokens):
            where = positions(mask)
            if where:
                where["position_ids"] = where["position_ids"][:, -tokens.shape[1] :]
            output = self.model(
                input_ids=tokens,
                **where,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                output_hidden_states=self.layer is not None,
            )
            logits_NV = output.logits[:, -1].float()
            if step == 0:
                # Each prompt is read once; its responses go on from copies of what it left.
                cache.batch_repeat_interleave(group)
                logits_NV, mask = logits_NV.repeat_interleave(group, 0), prompt_mask_BP
            rows = torch.bincount(running_N // group, minlength=len(prompts)).tolist()
            token_N, logp_N = draw(logits_NV, temperature, zip(generators, rows, strict=True))
            response_BT[running_N, step] = token_N
            logp_BT[running_N, step] = logp_N
            mask_BT[running_N, step] = True
            if self.layer is not None:
                hidden_ND = output.hidden_states[self.layer][:, -1]
                if hidden_BTD is None:
                    hidden_ND = hidden_ND.repeat_interleave(group, 0)
                    hidden_BTD = hidden_ND.new_zeros(*shape, hidden_ND.shape[1])
                hidden_BTD[running_N, step] = hidden_ND

            alive_N = ~torch.isin(token_N, stop)
            if not alive_N.any():
                break
            if not alive_N.all():
                cache.batch_select_indices(alive_N)
            running_N = running_N[alive_N]
            tokens = token_N[alive_N].unsqueeze(1)
            mask = nn.functional.pad(mask[alive_N], (0, 1), value=True)

        longest = int(mask_BT.sum(1).max())
        last_B = response_BT.gather(1, (mask_BT.sum(1) - 1).unsqueeze(1)).squeeze(1)
        return Rollouts(
            prompt_BP=prompt_BP,
            prompt_mask_BP=prompt_mask_BP,
            response_BT=response_BT[:, :longest],
            mask_BT=mask_BT[:, :longest],
            logp_BT=logp_BT[:, :longest],
            finished_B=torch.isin(last_B, stop),
            texts=self.tokenizer.batch_decode(response_BT, skip_special_tokens=True),
            hidden_BTD=None if hidden_BTD is None else hidden_BTD[:, :longest],
        )


def encode(
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    *,
    max_new_tokens: int,
) -> list[list[int]]:
    """The prompts as ids; ValueError if the model has no room for such responses to them."""
    encoded: list[list[int]] = [tokenizer.encode(prompt) for prompt in prompts]
    room = config.max_position_embeddings - max(map(len, encoded))
    if max_new_tokens > room:
        raise ValueError(
            f"max_new_tokens={max_new_tokens}: the longest prompt leaves room for {room}"
        )
    return encoded


def padded(
    encoded: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> tuple[Tensor, Tensor]:
    """Ids padded on the left, and a mask of the real ones.

    Padded here and not by the tokenizer, which would remember how and save it.
    """
    ids = [torch.tensor(each) for each in encoded]
    pad_left = partial(nn.utils.rnn.pad_sequence, batch_first=True, padding_side="left")
    return (
        pad_left(ids, padding_value=tokenizer.pad_token_id),
        pad_left([torch.ones_like(each, dtype=torch.bool) for each in ids]),
    )


def prompt_seed(seed: int, number: int) -> int:
    """The seed of the responses to one prompt of a batch."""
    return random.Random(f"{seed}/{number}").getrandbits(63)


def draw(
    logits_NV: Tensor, temperature: float, generators: Iterable[tuple[torch.Generator, int]]
) -> tuple[Tensor, Tensor]:
    """One token per row from softmax(logits / temperature), and its log p there.

    generators  where chance comes from, each for so many of the rows, in order.
    """
    if temperature == 0:
        logp_NV = logits_NV.log_softmax(-1)
        token_N = logits_NV.argmax(-1)
    else:
        logp_NV = (logits_NV / temperature).log_softmax(-1)
        uniform = [
            torch.rand(rows, 1, generator=each, dtype=torch.float64, device=logits_NV.device)
            for each, rows in generators
        ]
        token_N = draw_tokens(logp_NV, torch.cat(uniform))
    return token_N, logp_NV.gather(-1, token_N.unsqueeze(-1)).squeeze(-1)


def stop_ids(model: PreTrainedModel) -> Tensor:
    eos = model.generation_config.eos_token_id
    if eos is None:
        raise ValueError("the model's generation_config has no eos_token_id: responses never end")
    return torch.tensor([eos] if isinstance(eos, int) else eos)
