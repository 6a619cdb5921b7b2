"""Low-rank views of a matrix: the numerics shared by adapters and `pair extract`.

Leaves out where the matrices come from (checkpoints, layers) and how factors are stored.

M, N  rows and columns of a matrix      R  rank      K  columns of a Krylov basis
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class SVD(NamedTuple):
    """Leading singular triples: matrix ≈ (U_MR · S_R) @ V_NR.T, largest value first."""

    U_MR: Tensor
    S_R: Tensor
    V_NR: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank:
    """A matrix as left_MR @ right_RN, each side carrying the root of the singular values.

    energy  captured share of the squared Frobenius norm, in [0, 1].
    """

    left_MR: Tensor
    right_RN: Tensor
    singular_values_R: Tensor
    energy: float

    @property
    def rank(self) -> int:
        return self.singular_values_R.numel()


def randomized_svd(
    matrix_MN: Tensor,
    rank: int,
    *,
    generator: torch.Generator,
    power_iterations: int = 6,
    oversampling: int = 8,
) -> SVD:
    """The leading singular triples of a large matrix, found from a few products with it.

    A randomised block Krylov method (Musco & Musco, arXiv 1504.05477, algorithm 2): the basis
    keeps every power iteration instead of the last only, which is what makes spectra without a
    gap converge. On the flat spectrum of a masked weight, 6 iterations hold ≥ 0.99 of the best
    energy where 8 of plain subspace iteration (arXiv 0909.4061, §4.5) hold 0.96.
    Works in float32, or in float64 for float64 input. When the basis would span the matrix the
    dense decomposition is taken. The sketch is drawn on the generator's device, so one seed gives
    one sketch wherever the matrix lives.

    Raises ValueError for a rank outside 1 … min(M, N).
    """
    _check_rank(rank, matrix_MN)
    matrix_MN = _working_precision(matrix_MN)
    if matrix_MN.shape[0] > matrix_MN.shape[1]:
        # The basis then lives on the short side, where orthogonalising it is cheap.
        right, values, left = randomized_svd(
            matrix_MN.T,
            rank,
            generator=generator,
            power_iterations=power_iterations,
            oversampling=oversampling,
        )
        return SVD(left, values, right)
    width = rank + oversampling
    if (power_iterations + 1) * width >= matrix_MN.shape[0]:
        U, S, Vh = torch.linalg.svd(matrix_MN, full_matrices=False)
        return SVD(U[:, :rank], S[:rank], Vh[:rank].T)
    basis_MK = _krylov_basis(matrix_MN, width, power_iterations, generator)
    # basisᵀ matrix = Rᵀ Qᵀ: the dense SVD is then of K × K only.
    Q_NK, R_KK = torch.linalg.qr(matrix_MN.T @ basis_MK)
    U_KK, S_K, Vh_KK = torch.linalg.svd(R_KK.T)
    return SVD(basis_MK @ U_KK[:, :rank], S_K[:rank], Q_NK @ Vh_KK[:rank].T)


def gram_svd(matrix_MN: Tensor, rank: int) -> tuple[SVD, Tensor]:
    """The leading triples and every singular value, exactly, in float64.

    From the eigenvectors of the smaller Gram matrix, several times faster than a dense SVD.
    Singular values below about 1e-8 of the largest drown in the squaring, and their vectors with
    them: a rank that reaches so far down raises ValueError.
    """
    _check_rank(rank, matrix_MN)
    if matrix_MN.shape[0] < matrix_MN.shape[1]:
        (right, values, left), every = gram_svd(matrix_MN.T, rank)
        return SVD(left, values, right), every
    matrix_MN = matrix_MN.double()
    squares_N, V_NN = torch.linalg.eigh(matrix_MN.T @ matrix_MN)
    every_N = squares_N.flip(0).clamp_min(0).sqrt()
    S_R, V_NR = every_N[:rank], V_NN.flip(1)[:, :rank]
    if not S_R[-1] > 1e-8 * S_R[0]:
        raise ValueError(f"{rank=}: the matrix is numerically of lower rank")
    return SVD(matrix_MN @ V_NR / S_R, S_R, V_NR), every_N


def extract_low_rank(
    delta_MN: Tensor,
    *,
    generator: torch.Generator,
    rank: int | None = None,
    energy: float | None = None,
    noise_floor: float | None = None,
    max_rank: int = 512,
) -> LowRank:
    """The smallest low-rank form of an update that meets one criterion.

    rank         exactly that many singular triples.
    energy       as few triples as hold this share of ‖delta‖²_F, in (0, 1].
    noise_floor  every triple whose singular value exceeds it (see `rounding_noise_floor`);
                 none may, and then the rank is 0.

    Raises ValueError when not exactly one criterion is given, for a value out of range, and when
    a criterion needs more than max_rank triples: the message says how much energy those hold.
    """
    if sum(criterion is not None for criterion in (rank, energy, noise_floor)) != 1:
        raise ValueError(f"give one of {rank=}, {energy=}, {noise_floor=}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"{energy=}: must be in (0, 1]")
    if noise_floor is not None and not (math.isfinite(noise_floor) and noise_floor >= 0):
        raise ValueError(f"{noise_floor=}: must be finite and not negative")
    delta_MN = _working_precision(delta_MN)
    total = delta_MN.double().square().sum().item()
    if rank is not None:
        return _balanced(randomized_svd(delta_MN, rank, generator=generator), rank, total)
    full = min(delta_MN.shape)
    limit = min(max_rank, full)
    tried = min(32, limit)
    while True:
        svd = randomized_svd(delta_MN, tried, generator=generator)
        needed = _needed(svd.S_R, total, energy=energy, noise_floor=noise_floor)
        if needed <= tried or tried == full:
            return _balanced(svd, min(needed, tried), total)
        if tried == limit:
            held = svd.S_R.double().square().sum().item() / total
            raise ValueError(
                f"{energy=}, {noise_floor=}: needs more than {max_rank=} singular triples, which "
                f"hold {held:.3f} of the energy; raise max_rank or lower the criterion"
            )
        tried = min(2 * tried, limit)


def compact(left_MR: Tensor, right_RN: Tensor) -> LowRank:
    """The same product left_MR @ right_RN in canonical form: balanced factors, sorted values.

    Costs two thin QR factorisations; the product is never formed. Reads the singular values of
    an adapter's update off its factors, so a rank can be cut knowingly.
    """
    Q_left_MR, R_left_RR = torch.linalg.qr(_working_precision(left_MR))
    Q_right_NR, R_right_RR = torch.linalg.qr(_working_precision(right_RN).T)
    U_RR, S_R, Vh_RR = torch.linalg.svd(R_left_RR @ R_right_RR.T)
    svd = SVD(Q_left_MR @ U_RR, S_R, Q_right_NR @ Vh_RR.T)
    return _balanced(svd, S_R.numel(), S_R.double().square().sum().item())


def rounding_noise_floor(weight_MN: Tensor, dtype: torch.dtype) -> float:
    """The largest singular value that rounding a weight to `dtype` adds to its update.

    Rounding errors are near uniform within one unit in the last place: their deviation is
    ulp / √12, and a random matrix of that deviation σ has spectral norm σ · (√M + √N), the
    edge of its Marchenko–Pastur spectrum. Singular values of an update below this are noise.
    """
    _, exponent_MN = torch.frexp(weight_MN.double())
    # frexp's mantissa lies in [½, 1), the one eps is stated for in [1, 2).
    ulp_MN = torch.finfo(dtype).eps * torch.exp2(exponent_MN.double() - 1)
    deviation = (ulp_MN * (weight_MN != 0)).square().mean().sqrt().item() / math.sqrt(12)
    return deviation * sum(math.sqrt(side) for side in weight_MN.shape)


def spectral_error(
    matrix_MN: Tensor, approximation: LowRank, *, generator: torch.Generator, probes: int = 10
) -> float:
    """An upper bound of ‖matrix − approximation‖₂ that fails with probability 10^−probes.

    The a-posteriori estimate of Halko, Martinsson & Tropp (arXiv 0909.4061, eq. 4.3), from
    `probes` products with the matrix; typically some ten times too large, never by luck too small.
    """
    matrix_MN = _working_precision(matrix_MN)
    probe_NK = _gaussian(matrix_MN, (matrix_MN.shape[1], probes), generator)
    kept_MK = approximation.left_MR @ (approximation.right_RN @ probe_NK)
    worst: float = torch.linalg.vector_norm(matrix_MN @ probe_NK - kept_MK, dim=0).max().item()
    return 10 * math.sqrt(2 / math.pi) * worst


def _krylov_basis(
    matrix_MN: Tensor, width: int, power_iterations: int, generator: torch.Generator
) -> Tensor:
    sketch_NK = _gaussian(matrix_MN, (matrix_MN.shape[1], width), generator)
    block, _ = torch.linalg.qr(matrix_MN @ sketch_NK)
    blocks = [block]
    for _ in range(power_iterations):
        block = matrix_MN @ (matrix_MN.T @ block)
        # Without this every block would lean towards the first singular vectors.
        for earlier in blocks:
            block = block - earlier @ (earlier.T @ block)
        block, _ = torch.linalg.qr(block)
        blocks.append(block)
    basis_MK: Tensor = torch.linalg.qr(torch.cat(blocks, dim=1)).Q
    return basis_MK


def _needed(S_R: Tensor, total: float, *, energy: float | None, noise_floor: float | None) -> int:
    """How many triples the criterion asks for; more than were tried when it cannot be told yet."""
    if noise_floor is not None:
        above = int(S_R.gt(noise_floor).sum())
        return above if above < S_R.numel() else above + 1
    assert energy is not None
    if total == 0:
        return 0
    held_R = S_R.double().square().cumsum(0) / total
    return int(held_R.lt(energy).sum()) + 1


def _balanced(svd: SVD, rank: int, total: float) -> LowRank:
    root_R = svd.S_R[:rank].sqrt()
    held = svd.S_R[:rank].double().square().sum().item()
    return LowRank(
        left_MR=svd.U_MR[:, :rank] * root_R,
        right_RN=root_R[:, None] * svd.V_NR[:, :rank].T,
        singular_values_R=svd.S_R[:rank],
        energy=min(held / total, 1.0) if total else 1.0,
    )


def _gaussian(like: Tensor, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return drawn.to(like.device)


def _working_precision(matrix: Tensor) -> Tensor:
    return matrix if matrix.dtype == torch.float64 else matrix.float()


def _check_rank(rank: int, matrix_MN: Tensor) -> None:
    if not 1 <= rank <= min(matrix_MN.shape):
        shape = "×".join(map(str, matrix_MN.shape))
        raise ValueError(f"rank={rank}: a {shape} matrix has ranks 1 to {min(matrix_MN.shape)}")
