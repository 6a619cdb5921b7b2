"""GeoRA (arXiv 2601.09361): an adapter that starts where RLVR is seen to move a model.

Full-weight RLVR leaves a weight's principal directions alone and moves its small entries. GeoRA
masks W down to the entries that are small, or small in W's low-rank part, and starts A and B
from the top singular vectors of what is left. The masks shape the start only: nothing holds
later updates to them.

M, N  rows and columns of a weight      R  rank
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rlvr_decode.lowrank import randomized_svd
from rlvr_decode.masks import magnitude_threshold
from rlvr_decode.training.adapters.attach import attach
from rlvr_decode.training.adapters.config import AdapterConfig, Anchors
from rlvr_decode.training.adapters.export import export

__all__ = ["GeoRAConfig", "Masks", "attach", "export", "geometry_masks", "magnitude_threshold"]


class Masks(NamedTuple):
    """Entries GeoRA keeps of a weight: the union of the two."""

    spectral_MN: Tensor
    euclidean_MN: Tensor

    @property
    def union_MN(self) -> Tensor:
        return self.spectral_MN | self.euclidean_MN


@dataclass(frozen=True, kw_only=True, slots=True)
class GeoRAConfig(AdapterConfig):
    """GeoRA with the settings of the paper's appendix C: rank 16, alpha 32, rho 0.2.

    rho  share of entries each mask keeps, in (0, 1]; at 0 nothing is left to start from.
    """

    kind: ClassVar[str] = "geora"
    learning_rate: ClassVar[float] = 1e-6

    rho: float = 0.2

    def __post_init__(self) -> None:
        AdapterConfig.__post_init__(self)
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho={self.rho}: must be in (0, 1]; the paper's is 0.2")

    def anchors(self, weight_MN: Tensor, *, generator: torch.Generator) -> Anchors:
        """A0 = Σ^½ Vᵀ and B0 = U Σ^½ of the masked weight's leading triples (eqs. 1–3).

        Unlike PiSSA the singular values are not divided by the scaling.
        """
        masks = geometry_masks(weight_MN, rank=self.rank, rho=self.rho, generator=generator)
        masked_MN = weight_MN * masks.union_MN
        U_MR, S_R, V_NR = randomized_svd(masked_MN, self.rank, generator=generator)
        root_R = S_R.sqrt()
        return Anchors(root_R[:, None] * V_NR.T, U_MR * root_R)


def geometry_masks(
    weight_MN: Tensor, *, rank: int, rho: float, generator: torch.Generator
) -> Masks:
    """The smallest rho of |rank-R part of W| and the smallest rho of |W| (eqs. 6–7).

    Thresholds are per matrix; entries equal to one are kept, so ties may exceed rho slightly.
    The two are nearly independent: their union holds about 2·rho − rho² of the entries.
    """
    # Only the order of the entries matters here, and four iterations settle it.
    U_MR, S_R, V_NR = randomized_svd(weight_MN, rank, generator=generator, power_iterations=4)
    spectral_MN = ((U_MR * S_R) @ V_NR.T).abs_()
    euclidean_MN = weight_MN.abs()
    return Masks(
        spectral_MN <= magnitude_threshold(spectral_MN, rho, generator=generator),
        euclidean_MN <= magnitude_threshold(euclidean_MN, rho, generator=generator),
    )
