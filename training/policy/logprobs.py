"""Log-probabilities of sampled responses under a model, with gradients: teacher forcing.

The logits of a large vocabulary are most of a step's memory, so they exist for a part of the
tokens at a time and are computed again in the backward pass; the gradient is exact.

B sequences, P prompt tokens (padded on the left), T response tokens (padded on the right),
N response tokens that count, V vocabulary, D hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlvr_decode.training.policy.prefix import hidden_states
from rlvr_decode.training.rollout.rollout import Rollouts

# 64 MB in float32: larger parts are no faster.
MAX_LOGITS = 1 << 24


def response_logprobs(
    model: PreTrainedModel, rollouts: Rollouts, *, temperature: float, max_logits: int = MAX_LOGITS
) -> tuple[Tensor, Tensor]:
    """log p of every response token given all before it, and the entropy of its distribution.

    Both [B, T] fp32 and 0 where masked. `temperature` is the sampler's: the policy being trained
    is the distribution sampled from. Of more than `max_logits` logits, so many are kept at a time.
    """
    mask_BT = rollouts.mask_BT
    hidden_BTD = hidden_states(model, rollouts)
    if mask_BT.numel() * model.config.vocab_size <= max_logits:
        logits_BTV = head(model)(hidden_BTD)
        logp_BT, entropy_BT = _chosen(logits_BTV, rollouts.response_BT, temperature)
        return logp_BT.masked_fill(~mask_BT, 0.0), entropy_BT.masked_fill(~mask_BT, 0.0)

    rows = max(1, max_logits // model.config.vocab_size)
    parts = [
        checkpoint(_from_hidden, head(model), hidden_nD, token_n, temperature, use_reentrant=False)
        for hidden_nD, token_n in zip(
            torch.split(hidden_BTD[mask_BT], rows),
            torch.split(rollouts.response_BT[mask_BT], rows),
            strict=True,
        )
    ]
    logp_N, entropy_N = (torch.cat(each) for each in zip(*parts, strict=True))
    zeros_BT = logp_N.new_zeros(mask_BT.shape)
    return zeros_BT.index_put((mask_BT,), logp_N), zeros_BT.index_put((mask_BT,), entropy_N)


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
    layer: nn.Module, hidden_ND: Tensor, token_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    return _chosen(layer(hidden_ND), token_N, temperature)


def _chosen(logits: Tensor, token: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log p of one token per row of [..., V], and the row's entropy."""
    logp = (logits.float() / temperature).log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, token.unsqueeze(-1)).squeeze(-1), entropy
