"""DAPO's two habits around the loss: overlong punishment and dynamic sampling
(arXiv 2503.14476, §3.2 and §3.4).

B responses.
"""

from __future__ import annotations

from torch import Tensor

from rlvr_decode.training.objectives.groups import is_constant


def overlong_penalty(lengths_B: Tensor, *, max_tokens: int, buffer: int) -> Tensor:
    """What to add to the reward of a long response: 0 up to max_tokens − buffer, then linearly
    down to −1 at max_tokens, −1 beyond (eq. 13)."""
    if not 0 < buffer <= max_tokens:
        raise ValueError(f"buffer={buffer} must be from 1 to max_tokens={max_tokens}")
    return ((max_tokens - buffer - lengths_B.double()) / buffer).clamp(-1.0, 0.0)


def informative(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """Which responses to keep (bool): those in groups whose rewards are not all equal (eq. 11).

    Dynamic sampling drops the others and samples more prompts until the batch is full again. Pass
    the correctness scores, before any length penalty.
    """
    return ~is_constant(rewards_B, group_B)
