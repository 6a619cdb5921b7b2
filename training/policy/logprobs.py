"""Log-probabilities of sampled responses under a model, with gradients: teacher forcing.

The logits of a large vocabulary are most of a step's memory, so they exist for a part of the
tokens at a time, and beyond some they are computed again in the backward pass; the gradient is
exact.

B sequences, P prompt tokens (padded on the left), T response tokens (padded on the right),
N response tokens that count, V vocabulary, D hidden width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlvr_decode.training.policy.prefix import hidden_states
from rlvr_decode.training.rollout.rollout import Rollouts

# 64 MB in float32: larger parts are no faster.
MAX_LOGITS = 1 << 24
# 256 MB in float32: so many are kept for the backward pass, the others computed again.
KEPT_LOGITS = 1 << 26


class TokenLogprobs(NamedTuple):
    """What a model says of sampled tokens: both [B, T] fp32 and 0 where masked."""

    logp_BT: Tensor
    """log p of every response token given all before it."""
    entropy_BT: Tensor | None
    """The entropy of its distribution, if it was asked for."""


def response_logprobs(
    model: PreTrainedModel,
    rollouts: Rollouts,
    *,
    temperature: float,
    entropy: bool = False,
    max_logits: int = MAX_LOGITS,
    kept_logits: int = KEPT_LOGITS,
) -> TokenLogprobs:
    """log p of every response token, and its distribution's entropy if asked for.

    `temperature` is the sampler's: the policy being trained is the distribution sampled from. At
    most `max_logits` logits are worked on at a time and `kept_logits` kept for the gradient.
    """
    mask_BT = rollouts.mask_BT
    hidden_ND = hidden_states(model, rollouts)[mask_BT]
    token_N = rollouts.response_BT[mask_BT]
    vocab = model.config.vocab_size
    rows, kept_rows = max(1, max_logits // vocab), kept_logits // vocab
    parts = []
    for start in range(0, len(token_N), rows):
        part = slice(start, start + rows)
        arguments = head(model), hidden_ND[part], token_N[part], temperature, entropy
        if start + rows <= kept_rows:
            parts.append(_from_hidden(*arguments))
        else:
            parts.append(checkpoint(_from_hidden, *arguments, use_reentrant=False))
    zeros_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    logp_BT, entropy_BT = (
        zeros_BT.index_put((mask_BT,), torch.cat(each)) for each in zip(*parts, strict=True)
    )
    return TokenLogprobs(logp_BT, entropy_BT if entropy else None)


def head(model: PreTrainedModel) -> nn.Module:
    """The layer that makes logits of hidden states."""
    layer = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert isinstance(layer, nn.Module)
    return layer


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """ValueError for a model that does more to its logits than its head: scales or caps them."""
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    whole = model(input_ids=token, use_cache=False).logits
    parts = head(model)(model.base_model(input_ids=token, use_cache=False).last_hidden_state)
    if not torch.allclose(whole, parts, rtol=1e-3, atol=1e-4):
        raise ValueError(
            f"{type(model).__name__} changes its logits after {type(head(model)).__name__}, which "
            "log-probs computed in parts would miss; train a model without soft-capped logits"
        )


def _from_hidden(
    layer: nn.Module, hidden_ND: Tensor, token_N: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor]:
    """log p of one token per row, and the row's entropy, or 0."""
    logits_NV = layer(hidden_ND).float()
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    logp_NV = logits_NV.log_softmax(-1)
    logp_N = logp_NV.gather(-1, token_N.unsqueeze(-1)).squeeze(-1)
    if not entropy:
        return logp_N, torch.zeros_like(logp_N)
    return logp_N, -(logp_NV.exp() * logp_NV).sum(-1)
