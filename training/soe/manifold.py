"""The bias manifold of a model at one place in a response, and how far a thought leads out of it.

Sample a few short continuations: the directions in which their hidden states differ are where the
model goes by itself. A probe whose hidden state points elsewhere opens what sampling would not.

Legend: N look-aheads, M probes, D hidden width, K directions of the manifold.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Manifold(NamedTuple):
    """The look-aheads' mean and an orthonormal basis of their main directions, float64."""

    mean_D: Tensor
    basis_KD: Tensor


def bias_manifold(lookahead_ND: Tensor, *, k: int | None = None, eps: float = 0.05) -> Manifold:
    """The span of the principal components of the look-aheads, from an N × N eigenproblem.

    The top `k` components, or else the fewest that explain 1 − eps of the variance (arXiv
    2601.06160; the paper's eps is not known). Centring leaves at most N − 1 directions, and none at
    all when every look-ahead is the same.
    """
    if len(lookahead_ND) < 2:
        raise ValueError(f"{len(lookahead_ND)} look-aheads: directions need at least 2")
    if not 0 <= eps < 1 or (k is not None and k < 1):
        raise ValueError(f"k={k}, eps={eps}: need k ≥ 1 and 0 ≤ eps < 1")
    lookahead_ND = lookahead_ND.double()
    mean_D = lookahead_ND.mean(0)
    centred_ND = lookahead_ND - mean_D
    eigenvalues_N, vectors_NN = torch.linalg.eigh(centred_ND @ centred_ND.mT)
    eigenvalues_N, vectors_NN = eigenvalues_N.flip(0).clamp_min(0), vectors_NN.flip(1)
    # Identical look-aheads differ by float32 rounding when they were computed in other batches.
    noise = torch.finfo(torch.float32).eps ** 2 * lookahead_ND.square().sum()
    real = int((eigenvalues_N > noise).sum())
    if k is None:
        share_N = eigenvalues_N.cumsum(0) / eigenvalues_N.sum()
        k = int((share_N < 1 - eps).sum()) + 1
    k = min(k, real)
    basis_KD = (vectors_NN[:, :k] / eigenvalues_N[:k].sqrt()).mT @ centred_ND
    return Manifold(mean_D, basis_KD)


def orthogonality(probe_MD: Tensor, manifold: Manifold, *, eps: float = 1e-8) -> Tensor:
    """Ω: the share of a probe's step away from the mean that lies outside the manifold.

    Ω = ‖(I − UUᵀ)(z − μ)‖ / (‖z − μ‖ + eps), from 0 (where the model goes by itself) to 1.
    Returns omega_M, float64.
    """
    step_MD = probe_MD.double() - manifold.mean_D
    inside_MK = step_MD @ manifold.basis_KD.mT
    outside_MD = step_MD - inside_MK @ manifold.basis_KD
    omega_M: Tensor = outside_MD.norm(dim=1) / (step_MD.norm(dim=1) + eps)
    return omega_M
