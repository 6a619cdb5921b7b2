"""Divergences between a list's target w and the policy's distribution P, as coefficients.

With P = softmax(s) every D has ∂D/∂s_k = P_k(g_k − Σ_j P_j g_j) with g = ∂D/∂P (arXiv 2605.06139,
App. C.6), so the coefficients of a list sum to zero. What each D makes of them (of w, P in (0,1)):

    forward_kl   KL(w‖P)                c = P − w: |c| ≤ 1, rare successes get most
    reverse_kl   KL(P‖w)                c = P(d − Σ P d), d = log P − log w: not bounded
    js           ½KL(w‖m) + ½KL(P‖m)    c = P(u − Σ P u), u = ½ log(P/m), m = (w + P)/2
    hellinger    ½Σ(√P − √w)²           c = −½(√(Pw) − P Σ√(Pw))
    alpha        (Σ w^α P^(1−α) − 1)/(α(α−1))    c = −(P/α)(r^α − Σ P r^α), r = w/P

The first two are the paper's; the others follow from its generic formula.

B responses; arguments are logarithms, groups say which list a response is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlvr_decode.training.objectives.groups import group_sum


def forward_kl(logp_B: Tensor, logw_B: Tensor, group_B: Tensor) -> Tensor:
    return logp_B.exp() - logw_B.exp()


def reverse_kl(logp_B: Tensor, logw_B: Tensor, group_B: Tensor) -> Tensor:
    return _centred(logp_B.exp() * (logp_B - logw_B), logp_B, group_B)


def js(logp_B: Tensor, logw_B: Tensor, group_B: Tensor) -> Tensor:
    log_middle_B = torch.logaddexp(logp_B, logw_B) - math.log(2)
    return _centred(logp_B.exp() * (logp_B - log_middle_B) / 2, logp_B, group_B)


def hellinger(logp_B: Tensor, logw_B: Tensor, group_B: Tensor) -> Tensor:
    return _centred(-((logw_B + logp_B) / 2).exp() / 2, logp_B, group_B)


def alpha_divergence(
    logp_B: Tensor, logw_B: Tensor, group_B: Tensor, *, alpha: float = 0.5
) -> Tensor:
    mixed_B = (alpha * logw_B + (1 - alpha) * logp_B).exp()
    return _centred(-mixed_B / alpha, logp_B, group_B)


def _centred(pull_B: Tensor, logp_B: Tensor, group_B: Tensor) -> Tensor:
    """From P·∂D/∂P, with ∂D/∂P up to a constant per list, to ∂D/∂s."""
    return pull_B - logp_B.exp() * group_sum(pull_B, group_B)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "js": js,
    "hellinger": hellinger,
    "alpha": alpha_divergence,
}
