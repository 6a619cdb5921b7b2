"""Where each adapter starts: GeoRA's masks and factors, singular vectors, LoRA's scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlvr_decode.matrices import LINEAR_LAYERS
from rlvr_decode.training.adapters.geora import GeoRAConfig, geometry_masks, magnitude_threshold
from rlvr_decode.training.adapters.lora import LoRAConfig
from rlvr_decode.training.adapters.singular import (
    MiLoRAConfig,
    PiSSAConfig,
    RLMOConfig,
    RLPOConfig,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def heavy_tailed(rows: int = 384, columns: int = 256) -> Tensor:
    """A float64 weight with a power-law spectrum over noise, as pretrained ones have."""
    left, right = (torch.randn(n, 64, generator=seeded(n)).double() for n in (rows, columns + 1))
    values = torch.arange(1, 65).double() ** -0.5
    noise = torch.randn(rows, columns, generator=seeded(9)).double()
    return 0.02 * ((left * values) @ right[:columns].T / 8 + noise)


def clear_spectrum() -> Tensor:
    """A float64 weight whose singular values fall by a fifth each: its subspaces are definite."""
    left, _, right = torch.linalg.svd(heavy_tailed(120, 90), full_matrices=False)
    weight: Tensor = (left * 0.8 ** torch.arange(90).double()) @ right
    return weight


def test_threshold_is_the_exact_order_statistic_of_any_size() -> None:
    values = torch.rand(1 << 21, generator=seeded())
    for rho in (0.001, 0.2, 0.5, 0.999):
        threshold = magnitude_threshold(values, rho, generator=seeded(1))
        assert int((values <= threshold).sum()) == math.floor(rho * values.numel())


def test_threshold_beyond_the_limit_of_torch_quantile() -> None:
    values = torch.rand(1, (1 << 24) + 1000, generator=seeded())
    threshold = magnitude_threshold(values, 0.2, generator=seeded(1))
    assert int((values <= threshold).sum()) == math.floor(0.2 * values.numel())


def test_threshold_is_exact_when_the_sample_misleads() -> None:
    """Nearly all entries alike: the bracket is one value wide and may miss the wanted rank."""
    values = torch.ones(1 << 21)
    values[:1000] = torch.linspace(0, 0.5, 1000)
    wanted = 500
    threshold = magnitude_threshold(values, wanted / values.numel(), generator=seeded())
    assert threshold == values[wanted - 1]
    assert magnitude_threshold(values, 0.9, generator=seeded()) == 1.0


def test_threshold_at_the_ends() -> None:
    values = torch.tensor([3.0, 1.0, 2.0])
    assert magnitude_threshold(values, 0.0, generator=seeded()) == -math.inf
    assert magnitude_threshold(values, 0.34, generator=seeded()) == 1.0
    assert magnitude_threshold(values, 1.0, generator=seeded()) == 3.0


def test_masks_by_hand() -> None:
    """rank 1 of diag(3, 2, 1) is diag(3, 0, 0): its 8 smallest are all but the 3."""
    weight = torch.diag(torch.tensor([3.0, 2.0, 1.0])).double() + 1e-3
    masks = geometry_masks(weight, rank=1, rho=8 / 9, generator=seeded())
    assert masks.spectral_MN.tolist() == [[False, True, True], [True] * 3, [True] * 3]
    masks = geometry_masks(weight, rank=1, rho=7 / 9, generator=seeded())
    assert masks.euclidean_MN.tolist() == [[False, True, True], [True, False, True], [True] * 3]
    # |W| drops its two largest, 3 and 2; rank 1 drops 3 and one or more that tie for second.
    assert not masks.spectral_MN[0, 0]


@pytest.mark.parametrize("rho", [0.1, 0.2, 0.3])
def test_masks_hold_rho_each_and_overlap_like_independent_ones(rho: float) -> None:
    weight = heavy_tailed()
    spectral, euclidean = masks = geometry_masks(weight, rank=16, rho=rho, generator=seeded())
    wanted = math.floor(rho * weight.numel())
    assert int(spectral.sum()) == int(euclidean.sum()) == wanted
    union = masks.union_MN.double().mean().item()
    intersection = (spectral & euclidean).double().mean().item()
    assert 2 * rho - rho**2 - 0.03 < union <= 2 * rho
    assert rho**2 < intersection < rho**2 + 0.03
    # arXiv 2601.09361 reports an intersection of 4.55 % and a union of 35.45 % at rho 0.2.
    assert union == pytest.approx(2 * rho - intersection, abs=2 / weight.numel())


def test_masks_at_the_ends_keep_nothing_and_everything() -> None:
    weight = heavy_tailed()
    assert not geometry_masks(weight, rank=4, rho=0.0, generator=seeded()).union_MN.any()
    assert geometry_masks(weight, rank=4, rho=1.0, generator=seeded()).union_MN.all()


def test_geora_factors_are_the_top_of_the_masked_weight() -> None:
    weight = heavy_tailed()
    config = GeoRAConfig(rank=8)
    A0, B0 = config.anchors(weight, generator=seeded(3))
    assert B0 is not None
    masks = geometry_masks(weight, rank=8, rho=0.2, generator=seeded(3))
    masked = torch.where(masks.union_MN, weight, 0.0)
    S = torch.linalg.svdvals(masked)
    best = (S[:8] ** 2).sum()
    lost = (masked - B0 @ A0).square().sum() - (S[8:] ** 2).sum()
    assert 0 <= lost < 0.02 * best
    # The square root of the singular values is on either side.
    torch.testing.assert_close(A0 @ A0.T, B0.T @ B0, rtol=0, atol=1e-10)


def test_geora_at_rho_one_is_pissa_up_to_scaling() -> None:
    """GeoRA does not divide by the scaling; PiSSA's factors are then smaller by its root."""
    weight = clear_spectrum()
    geora = GeoRAConfig(rank=8, alpha=16.0, rho=1.0).anchors(weight, generator=seeded())
    pissa = PiSSAConfig(rank=8, alpha=16.0).anchors(weight, generator=seeded())
    assert geora.B_MR is not None and pissa.B_MR is not None
    product = geora.B_MR @ geora.A_RN
    error = (product - 2 * pissa.B_MR @ pissa.A_RN).norm() / product.norm()
    assert error < 1e-4


@pytest.mark.parametrize("rho", [0.0, -0.1, 1.1, float("nan")])
def test_rho_is_checked(rho: float) -> None:
    with pytest.raises(ValueError, match="rho="):
        GeoRAConfig(rho=rho)


@pytest.mark.parametrize("alpha", [8.0, 24.0])
def test_pissa_and_milora_hold_the_ends_of_the_spectrum(alpha: float) -> None:
    weight = clear_spectrum()
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    for config, part in (
        (PiSSAConfig(rank=8, alpha=alpha), slice(None, 8)),
        (MiLoRAConfig(rank=8, alpha=alpha), slice(-8, None)),
    ):
        A0, B0 = config.anchors(weight, generator=seeded())
        assert B0 is not None
        held = config.scaling * B0 @ A0
        expected = (U[:, part] * S[part]) @ Vh[part]
        assert (held - expected).norm() < 1e-4 * expected.norm()
        torch.testing.assert_close(A0 @ A0.T, B0.T @ B0, rtol=0, atol=1e-9)


def test_rlpo_and_rlmo_start_orthonormal_at_either_end() -> None:
    weight = clear_spectrum()
    _, _, Vh = torch.linalg.svd(weight, full_matrices=False)
    for config, rows in ((RLPOConfig(rank=8), Vh[:8]), (RLMOConfig(rank=8), Vh[-8:])):
        A0, B0 = config.anchors(weight, generator=seeded())
        assert B0 is None
        torch.testing.assert_close(A0 @ A0.T, torch.eye(8).double(), rtol=0, atol=1e-12)
        cosines = torch.linalg.svdvals(A0 @ rows.T)
        assert cosines.min() > 1 - 1e-6


def test_lora_starts_as_pefts_kaiming_uniform() -> None:
    A0, B0 = LoRAConfig(rank=16).anchors(torch.zeros(32, 400), generator=seeded())
    assert B0 is None
    assert A0.shape == (16, 400)
    assert 0.99 / 20 < A0.abs().max() <= 1 / 20
    assert A0.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)
    assert A0.mean().abs() < 1e-3


def test_defaults_are_the_papers() -> None:
    geora = GeoRAConfig()
    assert (geora.rank, geora.alpha, geora.rho, geora.learning_rate) == (16, 32.0, 0.2, 1e-6)
    assert geora.targets == LINEAR_LAYERS
    for config in (PiSSAConfig(), MiLoRAConfig()):
        assert (config.rank, config.alpha, config.learning_rate) == (32, 32.0, 2e-5)
    for plain in (LoRAConfig(), RLPOConfig(), RLMOConfig()):
        assert (plain.rank, plain.alpha, plain.learning_rate) == (16, 32.0, 1e-5)
