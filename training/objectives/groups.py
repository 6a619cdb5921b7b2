"""Sums, means and softmaxes over the responses that answer the same prompt.

Groups are given by an id per response, in any order and of any sizes, so shuffled, filtered and
ragged batches need no reshaping. Every function returns one number per response.

B responses.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_sum(x_B: Tensor, group_B: Tensor) -> Tensor:
    """Each response's group total of x."""
    ids, index_B = torch.unique(group_B, return_inverse=True)
    return x_B.new_zeros(len(ids)).index_add(0, index_B, x_B)[index_B]


def group_size(group_B: Tensor) -> Tensor:
    """How many responses each response's group has (int64)."""
    return group_sum(torch.ones_like(group_B), group_B)


def group_mean(x_B: Tensor, group_B: Tensor) -> Tensor:
    """Each response's group mean of x."""
    return group_sum(x_B, group_B) / group_size(group_B)


def group_max(x_B: Tensor, group_B: Tensor) -> Tensor:
    """Each response's group maximum of x."""
    ids, index_B = torch.unique(group_B, return_inverse=True)
    lowest = x_B.new_full((len(ids),), -torch.inf)
    return lowest.scatter_reduce(0, index_B, x_B, reduce="amax")[index_B]


def group_std(x_B: Tensor, group_B: Tensor, *, ddof: int) -> Tensor:
    """Each response's group standard deviation: population (ddof 0) or sample (ddof 1).

    Exactly 0 where all values of a group are equal, and for a group of one, where the sample
    formula would be 0/0.
    """
    deviation_B = x_B - group_mean(x_B, group_B)
    freedom_B = (group_size(group_B) - ddof).clamp(min=1)
    std_B = (group_sum(deviation_B.square(), group_B) / freedom_B).sqrt()
    return std_B.masked_fill(is_constant(x_B, group_B), 0.0)


def is_constant(x_B: Tensor, group_B: Tensor) -> Tensor:
    """Whether all values of each response's group are equal (bool)."""
    return group_max(x_B, group_B) == -group_max(-x_B, group_B)


def group_softmax(x_B: Tensor, group_B: Tensor) -> Tensor:
    """Softmax of x within each group."""
    return group_log_softmax(x_B, group_B).exp()


def group_log_softmax(x_B: Tensor, group_B: Tensor) -> Tensor:
    """Log-softmax of x within each group."""
    shifted_B = x_B - group_max(x_B, group_B).detach()
    return shifted_B - group_sum(shifted_B.exp(), group_B).log()
