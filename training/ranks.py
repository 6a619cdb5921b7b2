"""The trajectory ranks of sampled responses: one teacher-forced forward without gradient.

The hidden states exist for one part of the batch at a time, so memory is bounded by `rows`.

B responses, T response tokens, D hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlvr_decode.training.padding import positions
from rlvr_decode.training.rollout import Rollouts
from rlvr_decode.training.spectral import trajectory_rank


def response_ranks(
    model: PreTrainedModel,
    rollouts: Rollouts,
    *,
    layer: int = -1,
    window: int = 64,
    stride: int = 32,
    power: int = 1,
    center: bool = True,
    rows: int = 64,
) -> Tensor:
    """The least effective rank over windows of each response's hidden states, rank_B.

    `layer` counts as `output_hidden_states` does; −1 is the last, after the final norm. Which one
    MRPO reads is not known. The other settings are those of `trajectory_rank`.
    """
    parts = []
    for rows_b in torch.split(torch.arange(len(rollouts.texts)), rows):
        part = rollouts.select(rows_b)
        parts.append(
            trajectory_rank(
                response_hidden(model, part, layer=layer),
                part.mask_BT,
                window=window,
                stride=stride,
                power=power,
                center=center,
            )
        )
    return torch.cat(parts)


@torch.no_grad()
def response_hidden(model: PreTrainedModel, rollouts: Rollouts, *, layer: int = -1) -> Tensor:
    """The hidden states at the response's own tokens, hidden_BTD."""
    tokens = rollouts.response_BT.shape[1]
    output = model(
        input_ids=torch.cat([rollouts.prompt_BP, rollouts.response_BT], dim=1),
        **positions(torch.cat([rollouts.prompt_mask_BP, rollouts.mask_BT], dim=1)),
        output_hidden_states=True,
        logits_to_keep=1,
        use_cache=False,
    )
    hidden_BTD: Tensor = output.hidden_states[layer][:, -tokens:]
    return hidden_BTD
