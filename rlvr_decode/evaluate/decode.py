"""Drawing from a pair with transformers, one batch at a time, watching every step.

The gated kernel gives the exact distribution of each step, so that its entropy and the rate of
intervention are computed, not estimated.

B sequences, T tokens, N rows still running, V vocabulary, S settings of a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from rlvr_decode import ops
from rlvr_decode.draws import draw_tokens
from rlvr_decode.kv_cache import roomy_cache
from rlvr_decode.params import Extrapolation
from rlvr_decode.rules import rule_numbers, rule_of_rows
from rlvr_decode.sampling import NEUTRAL, Sampling


class Drawn(NamedTuple):
    """One response: its tokens, and the mean entropy and rate of intervention over them."""

    tokens: list[int]
    finished: bool
    entropy: float
    rate: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How tokens are drawn.

    permutation  shuffles Δ over the vocabulary, [V]: the control of a meaningless direction.
    """

    extrapolation: Extrapolation = field(default_factory=Extrapolation)
    sampling: Sampling = NEUTRAL
    permutation: Tensor | None = None


@torch.no_grad()
def decode(
    rlvr: PreTrainedModel,
    base: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    recipe: Recipe,
    *,
    stop: Sequence[int],
    max_tokens: int,
    seed: int,
) -> list[Drawn]:
    """One response to each prompt of token ids; the same seed gives the same ones.

    Raises ValueError for a prompt that leaves no room for `max_tokens` more.
    """
    models = _needed(rlvr, base, recipe)
    ids_BT, mask_BT = _padded_left(prompts, rlvr, max_tokens)
    generator = torch.Generator(rlvr.device).manual_seed(seed)
    stops = torch.tensor(list(stop), device=rlvr.device)
    caches = [roomy_cache(model.config) for model in models]
    tokens_B: list[list[int]] = [[] for _ in prompts]
    entropy_B, rate_B = (torch.zeros(len(prompts), device=rlvr.device) for _ in range(2))
    finished_B = torch.zeros(len(prompts), dtype=torch.bool, device=rlvr.device)
    running_N = torch.arange(len(prompts), device=rlvr.device)

    for _ in range(max_tokens):
        logits = [
            _next_logits(model, cache, ids_BT, mask_BT)
            for model, cache in zip(models, caches, strict=True)
        ]
        drawn = _distribution(logits[0], logits[-1], recipe)
        token_N = _draw(drawn.logprobs, generator)
        for row, token in zip(running_N.tolist(), token_N.tolist(), strict=True):
            tokens_B[row].append(token)
        entropy_B[running_N] += torch.special.entr(drawn.logprobs.exp()).sum(-1)
        rate_B[running_N] += drawn.rate

        ends_N = torch.isin(token_N, stops)
        finished_B[running_N] = ends_N
        if ends_N.all():
            break
        alive_N = ~ends_N
        if ends_N.any():
            for cache in caches:
                cache.batch_select_indices(alive_N)
        running_N = running_N[alive_N]
        ids_BT = token_N[alive_N].unsqueeze(1)
        mask_BT = nn.functional.pad(mask_BT[alive_N], (0, 1), value=True)

    sums = (finished_B.tolist(), entropy_B.tolist(), rate_B.tolist())
    return [
        Drawn(tokens, finished, entropy / len(tokens), rate / len(tokens))
        for tokens, finished, entropy, rate in zip(tokens_B, *sums, strict=True)
    ]


def _needed(
    rlvr: PreTrainedModel, base: PreTrainedModel, recipe: Recipe
) -> tuple[PreTrainedModel, ...]:
    """The models whose logits matter, rlvr's first: plain rlvr and plain base need but one."""
    setting = recipe.extrapolation
    if not setting.gated and recipe.permutation is None:
        if setting.strength == 0:
            return (rlvr,)
        if setting.strength == -1:
            return (base,)
    return rlvr, base


def _distribution(rlvr_NV: Tensor, base_NV: Tensor, recipe: Recipe) -> ops.Gated:
    """log q of the coming token, after temperature and top-p, and the rate of intervention."""
    setting = recipe.extrapolation
    if recipe.permutation is not None:
        logp_NV = rlvr_NV.log_softmax(-1)
        delta_NV = logp_NV - base_NV.log_softmax(-1)
        base_NV = logp_NV - delta_NV[:, recipe.permutation]
    numbers_S = torch.tensor(rule_numbers(setting, recipe.sampling), device=rlvr_NV.device)
    rule = rule_of_rows(numbers_S[:, None].repeat(1, len(rlvr_NV)))
    return ops.gated_extrapolate(rlvr_NV, base_NV, rule)


def _draw(logq_NV: Tensor, generator: torch.Generator) -> Tensor:
    uniform_N1 = torch.rand(
        len(logq_NV), 1, generator=generator, dtype=torch.float64, device=logq_NV.device
    )
    return draw_tokens(logq_NV, uniform_N1)


def _next_logits(
    model: PreTrainedModel, cache: DynamicCache, ids_BT: Tensor, mask_BT: Tensor
) -> Tensor:
    output = model(
        input_ids=ids_BT,
        **_places(mask_BT, ids_BT.shape[1]),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: Tensor = output.logits[:, -1].float()
    return logits


def _places(mask_BT: Tensor, new: int) -> dict[str, Tensor]:
    """Attention mask and positions of the `new` last tokens; none to give without padding.

    A causal model's attention is faster without a mask.
    """
    if bool(mask_BT[:, 0].all()):
        return {}
    positions_BT = (mask_BT.long().cumsum(1) - 1).clamp(min=0)[:, -new:]
    return {"attention_mask": mask_BT.long(), "position_ids": positions_BT}


def _padded_left(
    prompts: Sequence[Sequence[int]], model: PreTrainedModel, max_tokens: int
) -> tuple[Tensor, Tensor]:
    """The prompts as [B, T] and a mask of the real tokens."""
    longest = max(map(len, prompts))
    room = model.config.max_position_embeddings - longest
    if max_tokens > room:
        raise ValueError(f"max_tokens={max_tokens}: the longest prompt leaves room for {room}")
    ids_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask_BT = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask_BT[row, longest - len(prompt) :] = True
    return ids_BT.to(model.device), mask_BT.to(model.device)
