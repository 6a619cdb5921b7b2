"""How an update lies in a model's weights: sparsity, angles, spectrum, alignment, per matrix.

The measures by which RLVR is told from supervised training (arXiv 2505.11711, 2511.08567) and on
which GeoRA (arXiv 2601.09361) rests. Matrices are read one at a time, so a pair of any size fits.
Leaves out layers that are not matrices (norms, biases) and embeddings.

M, N  rows and columns of a weight      K  leading singular directions
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlvr_decode.lowrank import gram_svd
from rlvr_decode.masks import low_mask, mask_overlap, principal_mask
from rlvr_decode.matrices import LINEAR_LAYERS, matrix_pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixGeometry:
    """One weight before and after training. Shares are None where nothing changed.

    relative_norm      ‖ΔW‖ / ‖W‖, Frobenius.
    sparsity           share of entries left as they were (`changed_entries`).
    spectral_shift     ‖σ(W+) − σ(W)‖ / ‖σ(W)‖ over all singular values.
    left_angle         largest principal angle between the leading output directions, degrees.
    right_angle        the same of the leading input directions.
    head_alignment     share of ‖ΔW‖² on the leading input directions of W.
    low_overlap        share of the changed entries among the smallest of |W|.
    principal_overlap  share of them among the largest of |leading part of W|.
    effective_rank     directions that ΔW spreads over, exp of the entropy of its singular values.

    A random update would have both overlaps at the `fraction` the masks were taken with.
    """

    name: str
    shape: tuple[int, int]
    relative_norm: float
    sparsity: float
    spectral_shift: float
    left_angle: float
    right_angle: float
    head_alignment: float | None
    low_overlap: float | None
    principal_overlap: float | None
    effective_rank: float | None


def analyze_geometry(
    base: str | Path,
    rlvr: str | Path,
    *,
    layers: tuple[str, ...] = LINEAR_LAYERS,
    top: int = 16,
    fraction: float = 0.3,
    eta: float = 1e-3,
    device: str = "cpu",
) -> list[MatrixGeometry]:
    """Compare two checkpoint directories, matrix by matrix, in the order of their names.

    rlvr      full weights, or plain LoRA (adapter_config.json) on that base.
    layers    last part of the names of the layers to look at.
    top       K, the leading singular directions; fewer in matrices that are smaller.
    fraction  of the entries in each overlap mask, in (0, 1).
    eta       relative change up to which an entry counts as unchanged.

    Three eigenvector problems of the shorter side each: seconds at 1536, a minute at 4096 on a
    CPU core. For a progress bar, loop over `matrix_pairs` and `matrix_geometry` oneself.
    Raises ValueError naming a weight that only one side has, or whose shapes differ.
    """
    return [
        matrix_geometry(
            name, before.to(device), after.to(device), top=top, fraction=fraction, eta=eta
        )
        for name, before, after in matrix_pairs(base, rlvr, layers=layers)
    ]


def matrix_geometry(
    name: str,
    before_MN: Tensor,
    after_MN: Tensor,
    *,
    top: int = 16,
    fraction: float = 0.3,
    eta: float = 1e-3,
) -> MatrixGeometry:
    """All measures of one matrix; see `MatrixGeometry` and `analyze_geometry`."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction}: must be in (0, 1)")
    before_MN, after_MN = before_MN.double(), after_MN.double()
    delta_MN = after_MN - before_MN
    rows, columns = before_MN.shape
    before, before_values = gram_svd(before_MN, min(top, rows, columns))
    after, after_values = gram_svd(after_MN, min(top, rows, columns))
    changed_MN = changed_entries(before_MN, after_MN, eta=eta)
    return MatrixGeometry(
        name=name,
        shape=(rows, columns),
        relative_norm=(delta_MN.norm() / before_MN.norm()).item(),
        sparsity=1 - changed_MN.double().mean().item(),
        spectral_shift=spectral_shift(before_values, after_values),
        left_angle=principal_angles(before.U_MR, after.U_MR).max().item(),
        right_angle=principal_angles(before.V_NR, after.V_NR).max().item(),
        head_alignment=head_alignment(delta_MN, before.V_NR),
        low_overlap=mask_overlap(low_mask(before_MN, fraction), changed_MN),
        principal_overlap=mask_overlap(principal_mask(before, fraction), changed_MN),
        effective_rank=effective_rank(delta_MN),
    )


def changed_entries(before_MN: Tensor, after_MN: Tensor, *, eta: float = 1e-3) -> Tensor:
    """Entries with |w' − w| > eta · max(|w|, |w'|), the papers' bfloat16-aware count of changes.

    Steps of bfloat16 are 2⁻⁸ to 2⁻⁷ of a value, so at eta = 1e-3 every one of them is a change,
    while the drift of a float32 checkpoint that bfloat16 would never show is not.
    """
    largest_MN = torch.maximum(before_MN.abs(), after_MN.abs())
    return (after_MN - before_MN).abs() > eta * largest_MN


def update_sparsity(before_MN: Tensor, after_MN: Tensor, *, eta: float = 1e-3) -> float:
    """Share of the entries an update leaves as they were, up to eta (`changed_entries`)."""
    return 1 - changed_entries(before_MN, after_MN, eta=eta).double().mean().item()


def principal_angles(first_MK: Tensor, second_MK: Tensor) -> Tensor:
    """The K angles between two subspaces given by orthonormal columns, in degrees, rising.

    cos θ = σ(firstᵀ second); the sines come from the part outside `first`, so that angles far
    below the root of the precision are not lost to the cosine (Björck & Golub 1973).
    """
    shared = first_MK.T @ second_MK
    cosines_K = torch.linalg.svdvals(shared)
    sines_K = torch.linalg.svdvals(second_MK - first_MK @ shared).flip(0)
    return torch.rad2deg(torch.atan2(sines_K, cosines_K))


def spectral_shift(before_values: Tensor, after_values: Tensor) -> float:
    """‖σ(W+) − σ(W)‖ / ‖σ(W)‖, singular values sorted alike."""
    shift: float = ((after_values - before_values).norm() / before_values.norm()).item()
    return shift


def effective_rank(delta_MN: Tensor) -> float | None:
    """exp(−Σ p ln p) with p = σ / Σ σ over all singular values (Roy & Vetterli 2007)."""
    if not delta_MN.any():
        return None
    _, values = gram_svd(delta_MN, 1)
    rank: float = torch.special.entr(values / values.sum()).sum().exp().item()
    return rank


def head_alignment(delta_MN: Tensor, V_NK: Tensor) -> float | None:
    """Σ_k ‖ΔW v_k‖² / ‖ΔW‖² over W's leading right singular vectors; K / N for a random ΔW."""
    total = delta_MN.square().sum().item()
    if total == 0:
        return None
    return (delta_MN @ V_NK).square().sum().item() / total
