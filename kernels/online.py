"""What the kernels share: sums over a softmax in one pass, as the maximum becomes known.

Every sum is kept relative to the largest logit met so far (online softmax, arXiv 1805.02867); when
a larger one comes, what has been summed is scaled down to it. A row may be cut into parts, each
summed by a program of its own, so that few rows keep a whole GPU busy. The cuts depend on the
width alone and the parts are joined in one order: a row's result does not depend on its batch.
"""

import triton
import triton.language as tl

MAX_BLOCK = 4096  # columns that a program takes in at once

# Where the running maximum starts. Finite, so that "−inf minus the maximum" is never −inf − −inf:
# a row of nothing but −inf sums to 0, and its log-sum-exp is −inf.
LOWEST = tl.constexpr(-3.4028234663852886e38)


def parts_of(width: int) -> tuple[int, int]:
    """Into what a row is cut: columns of a part, a power of two, and how many parts."""
    block: int = min(MAX_BLOCK, triton.next_power_of_2(width))
    return block, triton.cdiv(width, block)


@triton.jit
def advance(peak: tl.tensor, logits: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Take in a block: the new maximum, how far the old lies below it, and the block's weights.

    A sum of weights from before shrinks by exp(moved).
    """
    new_peak = tl.maximum(peak, tl.max(logits, 0))
    return new_peak, peak - new_peak, tl.exp(logits - new_peak)


@triton.jit
def join(peaks: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The maximum of a row's parts, how far each part's lies below it, and what sums shrink by."""
    peak = tl.max(peaks, 0)
    return peak, peaks - peak, tl.exp(peaks - peak)
