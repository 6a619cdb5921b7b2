"""The measures of an update, by hand, at their ends, and on updates of known geometry."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rlvr_decode.geometry import (
    analyze_geometry,
    changed_entries,
    effective_rank,
    head_alignment,
    matrix_geometry,
    principal_angles,
    spectral_shift,
    update_sparsity,
)
from rlvr_decode.lowrank import SVD
from rlvr_decode.masks import jaccard, low_mask, mask_overlap, principal_mask


def weight(rows: int = 60, columns: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()


def test_changed_entries_by_hand() -> None:
    before = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, -2.0, 1e-6]).double()
    after = torch.tensor([1.0, 1.0005, 1.002, 0.0, 1e-9, 2.0, 1.1e-6]).double()
    changed = changed_entries(before, after)
    assert changed.tolist() == [False, False, True, False, True, True, True]
    assert update_sparsity(before, after) == pytest.approx(3 / 7)
    # The larger of the two is the measure, so the order does not matter.
    assert torch.equal(changed_entries(after, before), changed)
    assert update_sparsity(before, after, eta=0.5) == pytest.approx(5 / 7)


def test_every_bfloat16_step_is_a_change() -> None:
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    next_up = (numbers.view(torch.int16) + 1).view(torch.bfloat16)
    assert update_sparsity(numbers.double(), next_up.double()) == 0.0
    assert update_sparsity(numbers.double(), numbers.double()) == 1.0


@pytest.mark.parametrize("degrees", [0.0, 1e-9, 1e-4, 0.5, 30.0, 90.0])
def test_principal_angle_of_a_rotation(degrees: float) -> None:
    theta = math.radians(degrees)
    first = torch.eye(5).double()[:, :2]
    second = first.clone()
    second[:, 1] = torch.tensor([0, math.cos(theta), math.sin(theta), 0, 0])
    angles = principal_angles(first, second)
    torch.testing.assert_close(angles, torch.tensor([0.0, degrees]).double(), rtol=1e-6, atol=1e-14)


def test_spectral_shift_by_hand() -> None:
    before, after = torch.tensor([4.0, 3.0]), torch.tensor([4.3, 2.6])
    assert spectral_shift(before, after) == pytest.approx(0.5 / 5)


def test_head_alignment_by_hand() -> None:
    delta = torch.tensor([[3.0, 0.0], [0.0, 4.0]]).double()
    first, second = torch.eye(2).double()
    assert head_alignment(delta, first[:, None]) == pytest.approx(9 / 25)
    assert head_alignment(delta, second[:, None]) == pytest.approx(16 / 25)
    assert head_alignment(torch.zeros(2, 2), torch.eye(2)) is None


def test_effective_rank_by_hand() -> None:
    assert effective_rank(torch.diag(torch.tensor([2.0, 2.0, 2.0, 0.0]))) == pytest.approx(3)
    p = torch.tensor([0.75, 0.25]).double()
    spread = math.exp(-(p * p.log()).sum())
    assert effective_rank(torch.diag(torch.tensor([-3.0, 1.0]))) == pytest.approx(spread)
    assert effective_rank(torch.zeros(2, 3)) is None


def test_overlaps_by_hand() -> None:
    mask = torch.tensor([True, True, False, False])
    changed = torch.tensor([True, False, True, True])
    assert mask_overlap(mask, changed) == pytest.approx(1 / 3)
    assert mask_overlap(mask, torch.zeros(4, dtype=torch.bool)) is None
    assert jaccard(mask, changed) == pytest.approx(1 / 4)
    assert jaccard(~mask & mask, changed & ~changed) == 1.0


def test_masks_hold_their_fraction_of_the_right_end() -> None:
    matrix = torch.tensor([[5.0, -1.0], [2.0, -4.0]]).double()
    assert low_mask(matrix, 0.5).tolist() == [[False, True], [True, False]]
    ones = torch.ones(2, 1).double()
    leading = SVD(
        torch.tensor([[1.0], [3.0]]).double(), ones[0], torch.tensor([[2.0], [-1.0]]).double()
    )
    assert principal_mask(leading, 0.5).tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_a_random_update_overlaps_by_chance(fraction: float) -> None:
    before = weight(400, 300)
    after = before.clone()
    chosen = torch.rand(400, 300, generator=torch.Generator().manual_seed(1)) < 0.25
    after[chosen] *= 1.5
    report = matrix_geometry("w", before, after, fraction=fraction)
    spread = 4 * math.sqrt(fraction / chosen.sum())
    assert report.low_overlap == pytest.approx(fraction, abs=spread)
    assert report.principal_overlap == pytest.approx(fraction, abs=spread)
    assert report.sparsity == pytest.approx(1 - chosen.double().mean().item())


def test_no_update_has_no_geometry() -> None:
    report = matrix_geometry("w", weight(), weight())
    assert (report.relative_norm, report.spectral_shift, report.sparsity) == (0.0, 0.0, 1.0)
    assert report.left_angle < 1e-10
    assert report.right_angle < 1e-10
    assert report.head_alignment is report.low_overlap is report.principal_overlap is None
    assert report.effective_rank is None


def test_an_update_along_the_head_shifts_the_spectrum_and_turns_nothing() -> None:
    before = weight()
    U, S, Vh = torch.linalg.svd(before, full_matrices=False)
    after = before + 0.1 * S[0] * torch.outer(U[:, 0], Vh[0])
    report = matrix_geometry("w", before, after, top=4)
    assert report.spectral_shift == pytest.approx((0.1 * S[0] / S.norm()).item())
    assert report.relative_norm == pytest.approx(report.spectral_shift)
    assert report.head_alignment == pytest.approx(1.0)
    assert report.effective_rank == pytest.approx(1.0, abs=1e-4)
    assert max(report.left_angle, report.right_angle) < 1e-6


def test_a_rotation_turns_the_head_and_shifts_nothing() -> None:
    before = weight()
    U, S, Vh = torch.linalg.svd(before, full_matrices=False)
    theta = math.radians(7)
    turned = U.clone()
    turned[:, 3] = math.cos(theta) * U[:, 3] + math.sin(theta) * U[:, 20]
    turned[:, 20] = math.cos(theta) * U[:, 20] - math.sin(theta) * U[:, 3]
    report = matrix_geometry("w", before, (turned * S) @ Vh, top=4)
    assert report.left_angle == pytest.approx(7.0)
    assert report.right_angle < 1e-6
    assert report.spectral_shift < 1e-9


def test_updates_of_small_entries_are_seen_as_such() -> None:
    before = weight(200, 100)
    after = torch.where(low_mask(before, 0.2), 2 * before, before)
    report = matrix_geometry("w", before, after, fraction=0.3)
    assert report.low_overlap == 1.0
    assert report.sparsity == pytest.approx(0.8)


def test_fraction_is_checked() -> None:
    with pytest.raises(ValueError, match=r"fraction=1\.0"):
        matrix_geometry("w", weight(), weight(), fraction=1.0)


def test_analysis_of_two_directories_is_that_of_their_matrices(tmp_path) -> None:
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)]
    before = {name: weight(seed=i).float() for i, name in enumerate(names)}
    after = {name: matrix + 0.01 * weight(seed=9).float() for name, matrix in before.items()}
    for directory, state in (("base", before), ("rlvr", after)):
        (tmp_path / directory).mkdir()
        save_file(
            state | {"model.norm.weight": torch.ones(3)}, tmp_path / directory / "m.safetensors"
        )
    reports = analyze_geometry(tmp_path / "base", tmp_path / "rlvr", top=4, fraction=0.2)
    assert [report.name for report in reports] == names
    for report in reports:
        alone = matrix_geometry(
            report.name, before[report.name], after[report.name], top=4, fraction=0.2
        )
        assert asdict(report) == asdict(alone)
        assert report.shape == (60, 40)
        assert 0.005 < report.relative_norm < 0.02
