"""The hidden states that responses are predicted from, with every prompt read once for its group.

The responses to a prompt attend to the same keys and values. Where all prompts of a batch have
equally many responses side by side, one pass reads each prompt and a second one all responses;
the gradient of the shared keys and values is the sum over the responses, so nothing changes but
the time (as in Prefix Grouper, arXiv 2506.05433). Otherwise each response brings its prompt along.

G prompts, B responses, P prompt tokens (padded on the left), T response tokens (padded on the
right), D hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rlvr_decode.training.rollout.padding import positions
from rlvr_decode.training.rollout.rollout import Rollouts


def hidden_states(model: PreTrainedModel, rollouts: Rollouts) -> Tensor:
    """The last hidden state before each response token, [B, T, D], with its gradient."""
    prompt_BP, response_BT = rollouts.prompt_BP, rollouts.response_BT
    mask_BL = torch.cat([rollouts.prompt_mask_BP, rollouts.mask_BT], dim=1)
    group = responses_per_prompt(rollouts)
    cache = DynamicCache(config=model.config)
    if group == 1 or not _can_share(model, cache):
        return _states(
            model,
            input_ids=torch.cat([prompt_BP, response_BT], dim=1),
            use_cache=False,
            **positions(mask_BL),
        )[:, prompt_BP.shape[1] - 1 : -1]

    prompts_GPD = _states(
        model,
        input_ids=prompt_BP[::group],
        past_key_values=cache,
        use_cache=True,
        **positions(rollouts.prompt_mask_BP[::group]),
    )
    first_B1D = prompts_GPD[:, -1:].repeat_interleave(group, dim=0)
    if response_BT.shape[1] == 1:
        return first_B1D
    cache.batch_repeat_interleave(group)
    where = positions(mask_BL[:, :-1])
    if where:
        where["position_ids"] = where["position_ids"][:, prompt_BP.shape[1] :]
    rest = _states(
        model, input_ids=response_BT[:, :-1], past_key_values=cache, use_cache=True, **where
    )
    return torch.cat([first_B1D, rest], dim=1)


def responses_per_prompt(rollouts: Rollouts) -> int:
    """How many responses side by side each prompt has, if all have the same number; else 1."""
    # No token is −1, so padding never passes for a prompt that is longer.
    key_BP = rollouts.prompt_BP.masked_fill(~rollouts.prompt_mask_BP, -1)
    starts_B = torch.ones(len(key_BP), dtype=torch.bool, device=key_BP.device)
    starts_B[1:] = (key_BP[1:] != key_BP[:-1]).any(1)
    count_G = starts_B.cumsum(0).bincount()[1:]
    least, most = count_G.aminmax()
    return int(most) if least == most else 1


def _can_share(model: PreTrainedModel, cache: DynamicCache) -> bool:
    """Whether keys and values of all tokens are kept: not under gradient checkpointing, which keeps
    none, and not by layers that see a window or hold a state."""
    checkpointing = model.training and model.is_gradient_checkpointing
    return not checkpointing and all(type(layer) is DynamicLayer for layer in cache.layers)


def _states(model: PreTrainedModel, **inputs: object) -> Tensor:
    states = model.base_model(**inputs).last_hidden_state
    assert isinstance(states, Tensor)
    return states
