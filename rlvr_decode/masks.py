"""Masks of a weight's entries by magnitude, and how they overlap with an update's.

M, N  rows and columns of a weight
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlvr_decode.lowrank import SVD

# Below this many entries plain selection is as fast as sampling first.
SMALL = 1 << 20
SAMPLE = 1 << 18


def mask_overlap(mask_MN: Tensor, changed_MN: Tensor) -> float | None:
    """|mask ∩ changed| / |changed|; the mask's own share of the matrix for a random update."""
    total = int(changed_MN.sum())
    return int((mask_MN & changed_MN).sum()) / total if total else None


def jaccard(first_MN: Tensor, second_MN: Tensor) -> float:
    """|first ∩ second| / |first ∪ second|, say of the entries two runs changed; 1 for none."""
    union = int((first_MN | second_MN).sum())
    return int((first_MN & second_MN).sum()) / union if union else 1.0


def low_mask(weight_MN: Tensor, fraction: float) -> Tensor:
    """The smallest `fraction` of |W|'s entries: where RLVR is seen to work."""
    magnitudes = weight_MN.abs()
    return magnitudes <= _threshold(magnitudes, fraction)


def principal_mask(svd: SVD, fraction: float) -> Tensor:
    """The largest `fraction` of the entries of |leading part of W|: where it is not."""
    magnitudes = ((svd.U_MR * svd.S_R) @ svd.V_NR.T).abs()
    return magnitudes > _threshold(magnitudes, 1 - fraction)


def magnitude_threshold(magnitudes: Tensor, rho: float, *, generator: torch.Generator) -> float:
    """The ⌊rho·n⌋-th smallest of n magnitudes, exactly; −inf when that is none.

    A sample brackets the threshold and only the bracket is sorted through, a few passes over the
    matrix whatever its size (torch.quantile stops at 2²⁴ entries). Should the sample mislead,
    all entries are selected from: the sample changes the time taken, never the result.
    """
    flat = magnitudes.flatten()
    wanted = math.floor(rho * flat.numel())
    if wanted == 0:
        return -math.inf
    if flat.numel() <= SMALL:
        return _smallest(flat, wanted)
    at = torch.randint(flat.numel(), (SAMPLE,), generator=generator, device=generator.device)
    sample = flat[at.to(flat.device)].sort().values
    # Six standard deviations of a sample quantile's rank on either side.
    margin = 6 * math.sqrt(rho * (1 - rho) / SAMPLE)
    low = sample[math.floor(max(rho - margin, 0.0) * (SAMPLE - 1))]
    high = sample[math.ceil(min(rho + margin, 1.0) * (SAMPLE - 1))]
    bracket = flat[(flat >= low) & (flat <= high)]
    below = int(flat.lt(low).sum())
    if not below < wanted <= below + bracket.numel():
        return _smallest(flat, wanted)
    return _smallest(bracket, wanted - below)


def _smallest(flat: Tensor, wanted: int) -> float:
    return float(flat.kthvalue(wanted).values)


def _threshold(magnitudes: Tensor, fraction: float) -> float:
    # The threshold is exact; the generator only chooses how it is bracketed.
    return magnitude_threshold(magnitudes, fraction, generator=torch.Generator().manual_seed(0))
