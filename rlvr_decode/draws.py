"""Drawing tokens from a distribution.

N rows, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, float64, searchsorted


def draw_tokens(logp_NV: Tensor, uniform_N1: Tensor) -> Tensor:
    """One token per row: the first at which the sum of p passes a uniform number.

    One number a row instead of one a token: Gumbel's trick costs twenty times as much on a CPU.
    The sum is taken in float64, so that in a large vocabulary nothing is favoured.

    uniform_N1  float64 in [0, 1).

    A row without a distribution (NaN) gives its last token, whose log p says so.
    """
    cumulative_NV = logp_NV.exp().cumsum(-1, dtype=float64)
    token_N1 = searchsorted(cumulative_NV, uniform_N1 * cumulative_NV[:, -1:], right=True)
    return token_N1.squeeze(1).clamp(max=logp_NV.shape[1] - 1)
