"""Log-probabilities of sampled responses under a model, with gradients: teacher forcing.

B sequences, P prompt tokens (padded on the left), T response tokens (padded on the right).
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlvr_decode.training.padding import positions
from rlvr_decode.training.rollout import Rollouts


def response_logprobs(
    model: PreTrainedModel, rollouts: Rollouts, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """log p of every response token given all before it, and the entropy of its distribution.

    Both [B, T] fp32 and 0 where masked. `temperature` is the sampler's: the policy being trained
    is the distribution sampled from.
    """
    output = model(
        input_ids=torch.cat([rollouts.prompt_BP, rollouts.response_BT], dim=1),
        **positions(torch.cat([rollouts.prompt_mask_BP, rollouts.mask_BT], dim=1)),
        logits_to_keep=rollouts.response_BT.shape[1] + 1,
        use_cache=False,
    )
    logp_BTV = (output.logits[:, :-1].float() / temperature).log_softmax(-1)
    logp_BT = logp_BTV.gather(-1, rollouts.response_BT.unsqueeze(-1)).squeeze(-1)
    entropy_BT = -(logp_BTV.exp() * logp_BTV).sum(-1)
    padding_BT = ~rollouts.mask_BT
    return logp_BT.masked_fill(padding_BT, 0.0), entropy_BT.masked_fill(padding_BT, 0.0)
