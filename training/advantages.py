"""Advantage estimators: how much better than expected each response was.

Pure functions of the rewards of a whole batch and the prompt each response answers; they return
one number per response, or one per token where the docstring says so. Groups may be ragged and
their rows in any order. A group whose rewards are all equal, or that has one response left, gets
0 wherever a group is compared with itself.

B responses, T tokens.
"""

from __future__ import annotations

from torch import Tensor

from rlvr_decode.training.groups import group_mean, group_size, group_std


def group_normalised(
    rewards_B: Tensor, group_B: Tensor, *, eps: float = 1e-6, ddof: int = 1
) -> Tensor:
    """GRPO: (R − μ_G) / (σ_G + eps) (arXiv 2402.03300, eq. 4's Â)."""
    return group_centred(rewards_B, group_B) / (group_std(rewards_B, group_B, ddof=ddof) + eps)


def group_centred(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """Dr. GRPO: R − μ_G, without the standard deviation that favours easy and hard prompts
    (arXiv 2503.20783, §3.2)."""
    require_groups(group_B)
    return rewards_B - group_mean(rewards_B, group_B)


def require_groups(group_B: Tensor) -> None:
    """ValueError if every group has a single response: nothing can be compared within a group."""
    if int(group_size(group_B).max()) < 2:
        raise ValueError("every group has one response; this objective needs at least 2 per prompt")
