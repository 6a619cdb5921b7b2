"""Adapters that start from singular vectors of W: PiSSA, MiLoRA, RLPO and RLMO.

W = U Σ Vᵀ. PiSSA and RLPO take the top of the spectrum, MiLoRA and RLMO the bottom. The bottom
needs a dense SVD of every matrix: about a second each at 1536 columns, minutes for a whole model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlvr_decode.lowrank import SVD, randomized_svd
from rlvr_decode.training.adapters.config import AdapterConfig, Anchors


@dataclass(frozen=True, kw_only=True, slots=True)
class PiSSAConfig(AdapterConfig):
    """PiSSA (arXiv 2404.02948): scaling · B0 A0 is the principal part of W.

    The paper's scaling is 1 (alpha = rank); at another scaling the factors shrink so that their
    product stays the principal part.
    """

    kind: ClassVar[str] = "pissa"
    learning_rate: ClassVar[float] = 2e-5

    rank: int = 32

    def anchors(self, weight_MN: Tensor, *, generator: torch.Generator) -> Anchors:
        top = randomized_svd(weight_MN, self.rank, generator=generator)
        return _split(top, scaling=self.scaling)


@dataclass(frozen=True, kw_only=True, slots=True)
class MiLoRAConfig(AdapterConfig):
    """MiLoRA (arXiv 2406.09044): scaling · B0 A0 is the minor part of W, its smallest values."""

    kind: ClassVar[str] = "milora"
    learning_rate: ClassVar[float] = 2e-5

    rank: int = 32

    def anchors(self, weight_MN: Tensor, *, generator: torch.Generator) -> Anchors:
        return _split(_bottom(weight_MN, self.rank), scaling=self.scaling)


@dataclass(frozen=True, kw_only=True, slots=True)
class RLPOConfig(AdapterConfig):
    """RLPO (PMLR v306, 2026): A0 is the top right singular vectors, orthonormal; B = 0."""

    kind: ClassVar[str] = "rlpo"
    learning_rate: ClassVar[float] = 1e-5

    def anchors(self, weight_MN: Tensor, *, generator: torch.Generator) -> Anchors:
        top = randomized_svd(weight_MN, self.rank, generator=generator)
        return Anchors(top.V_NR.T.contiguous(), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class RLMOConfig(AdapterConfig):
    """RLMO (PMLR v306, 2026): A0 is the bottom right singular vectors, orthonormal; B = 0."""

    kind: ClassVar[str] = "rlmo"
    learning_rate: ClassVar[float] = 1e-5

    def anchors(self, weight_MN: Tensor, *, generator: torch.Generator) -> Anchors:
        return Anchors(_bottom(weight_MN, self.rank).V_NR.T.contiguous(), None)


def _split(svd: SVD, *, scaling: float) -> Anchors:
    root_R = (svd.S_R / scaling).sqrt()
    return Anchors(root_R[:, None] * svd.V_NR.T, svd.U_MR * root_R)


def _bottom(weight_MN: Tensor, rank: int) -> SVD:
    U, S, Vh = torch.linalg.svd(weight_MN, full_matrices=False)
    return SVD(U[:, -rank:], S[-rank:], Vh[-rank:].T)
