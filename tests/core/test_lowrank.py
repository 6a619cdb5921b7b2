"""Randomised SVD, rank criteria and compaction, against dense float64 decompositions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlvr_decode.lowrank import (
    compact,
    extract_low_rank,
    gram_svd,
    randomized_svd,
    rounding_noise_floor,
    spectral_error,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_spectrum(rows: int, columns: int, values: Tensor, seed: int = 0) -> Tensor:
    """A float64 matrix with the given singular values and random singular vectors."""
    count = values.numel()
    left, _ = torch.linalg.qr(torch.randn(rows, count, generator=seeded(seed)).double())
    right, _ = torch.linalg.qr(torch.randn(columns, count, generator=seeded(seed + 1)).double())
    matrix: Tensor = (left * values.double()) @ right.T
    return matrix


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
def test_randomized_svd_finds_decaying_triples(shape: tuple[int, int]) -> None:
    values = 0.9 ** torch.arange(200).double()
    matrix = with_spectrum(*shape, values)
    U, S, V = randomized_svd(matrix, 10, generator=seeded())
    torch.testing.assert_close(S, values[:10], rtol=1e-9, atol=0)
    torch.testing.assert_close(matrix @ V, U * S, rtol=0, atol=1e-6)
    torch.testing.assert_close(U.T @ U, torch.eye(10).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(V.T @ V, torch.eye(10).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(700, 400), (400, 700)])
def test_randomized_svd_captures_a_spectrum_without_gap(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=seeded())
    best = torch.linalg.svdvals(matrix.double())[:16].square().sum()
    captured = randomized_svd(matrix, 16, generator=seeded(1)).S_R.double().square().sum()
    assert 0.98 * best < captured <= best * (1 + 1e-6)


def test_randomized_svd_is_dense_when_the_basis_would_span_the_matrix() -> None:
    matrix = torch.randn(40, 30, generator=seeded()).double()
    svd = randomized_svd(matrix, 30, generator=seeded())
    torch.testing.assert_close((svd.U_MR * svd.S_R) @ svd.V_NR.T, matrix, rtol=0, atol=1e-12)


def test_randomized_svd_repeats_with_its_seed_and_accepts_bfloat16() -> None:
    matrix = torch.randn(300, 260, generator=seeded()).bfloat16()
    first, second = (randomized_svd(matrix, 4, generator=seeded(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first.S_R.dtype == torch.float32


def test_randomized_svd_of_zero_is_zero_with_orthonormal_vectors() -> None:
    U, S, V = randomized_svd(torch.zeros(400, 300), 4, generator=seeded())
    assert torch.equal(S, torch.zeros(4))
    torch.testing.assert_close(U.T @ U, torch.eye(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(V.T @ V, torch.eye(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 31])
def test_rank_outside_the_matrix_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank={rank}: a 40×30 matrix has ranks 1 to 30"):
        randomized_svd(torch.ones(40, 30), rank, generator=seeded())


@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
def test_gram_svd_is_exact(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=seeded())
    (U, S, V), every = gram_svd(matrix, 5)
    torch.testing.assert_close(every, torch.linalg.svdvals(matrix.double()), rtol=1e-9, atol=0)
    torch.testing.assert_close(matrix.double() @ V, U * S, rtol=0, atol=1e-10)
    torch.testing.assert_close(matrix.double().T @ U, V * S, rtol=0, atol=1e-10)


def test_extract_by_rank_recovers_a_rank_16_update_through_rounding() -> None:
    weight = torch.randn(256, 320, generator=seeded(3)) * 0.02
    update = with_spectrum(256, 320, torch.linspace(0.08, 0.04, 16)).float()
    delta = (weight + update) - weight
    low_rank = extract_low_rank(delta, rank=16, generator=seeded())
    recovered = low_rank.left_MR @ low_rank.right_RN
    pair = torch.stack([recovered.flatten(), update.flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.999
    assert low_rank.energy > 0.9999
    torch.testing.assert_close(
        low_rank.left_MR.norm(dim=0), low_rank.right_RN.norm(dim=1), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize(
    ("energy", "rank"), [(0.5, 1), (16 / 21, 1), (0.77, 2), (20 / 21, 2), (0.96, 3), (1.0, 3)]
)
def test_extract_by_energy_takes_as_few_triples_as_hold_it(energy: float, rank: int) -> None:
    delta = with_spectrum(3, 3, torch.tensor([4.0, 2.0, 1.0]))  # energies 16, 4, 1 of 21
    low_rank = extract_low_rank(delta, energy=energy - 1e-9, generator=seeded())
    assert low_rank.rank == rank
    assert math.isclose(low_rank.energy, {1: 16, 2: 20, 3: 21}[rank] / 21, rel_tol=1e-9)


def test_extract_by_energy_grows_beyond_its_first_guess() -> None:
    delta = with_spectrum(400, 300, torch.ones(100))
    low_rank = extract_low_rank(delta, energy=0.75 - 1e-6, generator=seeded())
    assert low_rank.rank == 75


def test_extract_above_a_noise_floor() -> None:
    delta = with_spectrum(300, 300, torch.tensor([5.0, 3.0, 0.1, 0.05]))
    assert extract_low_rank(delta, noise_floor=1.0, generator=seeded()).rank == 2
    nothing = extract_low_rank(delta, noise_floor=6.0, generator=seeded())
    assert nothing.rank == 0
    assert nothing.energy == 0.0
    assert torch.equal(nothing.left_MR @ nothing.right_RN, torch.zeros(300, 300).double())


def test_extract_says_what_its_cap_holds() -> None:
    delta = with_spectrum(400, 300, torch.ones(100))
    with pytest.raises(ValueError, match=r"max_rank=40 .* hold 0\.400 of the energy"):
        extract_low_rank(delta, energy=0.9, max_rank=40, generator=seeded())
    assert extract_low_rank(delta, energy=0.4 - 1e-6, max_rank=40, generator=seeded()).rank == 40
    with pytest.raises(ValueError, match=r"more than max_rank=40"):
        extract_low_rank(delta, noise_floor=0.5, max_rank=40, generator=seeded())


@pytest.mark.parametrize(
    "criterion",
    [{}, {"rank": 2, "energy": 0.5}, {"energy": 0.0}, {"energy": 1.5}, {"noise_floor": -1.0}],
)
def test_extract_refuses_unclear_criteria(criterion: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="|".join(criterion) or "give one of"):
        extract_low_rank(torch.eye(4), generator=seeded(), **criterion)  # type: ignore[arg-type]


def test_no_update_needs_no_triples() -> None:
    assert extract_low_rank(torch.zeros(50, 40), energy=0.9, generator=seeded()).rank == 0


def test_compact_keeps_the_product_and_sorts_its_values() -> None:
    left = torch.randn(70, 8, generator=seeded()).double()
    right = torch.randn(8, 50, generator=seeded(1)).double()
    product = left @ right
    low_rank = compact(left, right)
    error = (low_rank.left_MR @ low_rank.right_RN - product).norm() / product.norm()
    assert error < 1e-14
    torch.testing.assert_close(low_rank.singular_values_R, torch.linalg.svdvals(product)[:8])


def test_noise_floor_is_the_edge_of_measured_rounding_noise() -> None:
    weight = torch.randn(600, 400, generator=seeded()) * 0.02
    noise = weight.bfloat16().float() - weight
    measured = torch.linalg.svdvals(noise)[0].item()
    assert 0.95 < measured / rounding_noise_floor(weight, torch.bfloat16) < 1.05


def test_noise_floor_of_exact_zeros_is_zero() -> None:
    assert rounding_noise_floor(torch.zeros(5, 5), torch.bfloat16) == 0.0


def test_spectral_error_bounds_the_true_error() -> None:
    matrix = with_spectrum(200, 300, 0.9 ** torch.arange(100).double())
    low_rank = extract_low_rank(matrix, rank=20, generator=seeded())
    truth = 0.9**20
    assert truth < spectral_error(matrix, low_rank, generator=seeded(2)) < 100 * truth


def test_gram_svd_refuses_vectors_it_cannot_resolve() -> None:
    with pytest.raises(ValueError, match="rank=3: the matrix is numerically of lower rank"):
        gram_svd(with_spectrum(20, 10, torch.tensor([2.0, 1.0])), 3)
