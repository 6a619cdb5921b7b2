"""KL to a reference policy, estimated from the sampled tokens.

With x = log π − log π_ref on tokens sampled from π (Schulman, "Approximating KL divergence"):

    k1 = x            unbiased value; as a loss its gradient is zero-mean noise
    k2 = x²/2         biased value; its gradient is that of the reverse KL, on-policy
    k3 = e^(−x)+x−1   unbiased value, never negative; its gradient is biased

The unbiased form multiplies by the ratio π/π_old of the token, so that value and gradient stay
right once the policy has moved away from its samples (DeepSeek-V3.2, arXiv 2512.02556).

B responses, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# exp of more than this overflows nothing in float32 and is far outside any trust region.
MAX_LOG_RATIO = 20.0


def k1(log_ratio: Tensor) -> Tensor:
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    return log_ratio.square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    bounded = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (-bounded).exp() + bounded - 1


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
