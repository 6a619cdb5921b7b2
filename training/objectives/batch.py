"""Makes a batch of rollouts safe to compute with, and counts it.

B responses, T tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlvr_decode.training.objectives.groups import group_size, group_sum, is_constant
from rlvr_decode.training.objectives.inputs import LossInputs, Totals

LOG_PROBS = ("old_logp_BT", "ref_logp_BT", "rollout_logp_BT")
PRESENT = ("logp_BT", "entropy_BT")
REWARDS = ("rewards_B", "greedy_rewards_B", "bonus_B")


def cleaned(inputs: LossInputs) -> LossInputs:
    """Mask as bool, numbers in float32 or wider, zeros where the mask is.

    The present policy's tensors are checked only: they change from step to step, and a graph
    shared by micro-batches could be walked backward but once. Raises ValueError for an empty
    batch, and for a number that is not finite where it counts.
    """
    if not len(inputs.group_B):
        raise ValueError("the batch has no responses")
    mask_BT = inputs.mask_BT.bool()
    changes: dict[str, Any] = {"mask_BT": mask_BT}
    for name in (*PRESENT, *LOG_PROBS):
        value_BT = getattr(inputs, name)
        if value_BT is not None:
            clean_BT = counted_only(value_BT.detach(), mask_BT)
            if not bool(clean_BT.isfinite().all()):
                raise ValueError(f"{name} is not finite on a token that counts")
            if name in LOG_PROBS:
                changes[name] = clean_BT
    for name in REWARDS:
        value_B = getattr(inputs, name)
        if value_B is not None:
            if not bool(value_B.isfinite().all()):
                odd = float(value_B[~value_B.isfinite()][0])
                raise ValueError(f"{name} holds {odd}; leave such responses out of the batch")
            changes[name] = value_B.detach().to(changes["old_logp_BT"].dtype)
    return replace(inputs, **changes)


def counted_only(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """x in float32 or wider, with 0 where the mask is, so that padding can hold anything."""
    wide_BT = x_BT.float() if x_BT.dtype in (torch.float16, torch.bfloat16) else x_BT
    return wide_BT.masked_fill(~mask_BT, 0.0)


def counted(inputs: LossInputs) -> LossInputs:
    """The numbers about the whole batch and whole groups that parts of it will need."""
    mask_BT, group_B = inputs.mask_BT, inputs.group_B
    return replace(
        inputs,
        totals=inputs.totals or Totals.of(mask_BT, group_B),
        zero_variance_B=is_constant(inputs.rewards_B, group_B),
        group_size_B=group_size(group_B),
        group_tokens_B=group_sum(mask_BT.sum(-1), group_B),
        row_B=torch.arange(len(group_B), device=group_B.device),
    )
