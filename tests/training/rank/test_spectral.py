"""Effective rank against hand-computed spectra, published goldens and a float64 SVD."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlvr_decode.training.rank.spectral import (
    effective_rank,
    prefix_ranks,
    trajectory_rank,
    window_ranks,
)


def by_svd(hidden_TD: Tensor, *, power: int = 1, center: bool = True) -> float:
    """The definition, in float64, from the singular values themselves."""
    hidden_TD = hidden_TD.double()
    if center:
        hidden_TD = hidden_TD - hidden_TD.mean(0)
    weights = torch.linalg.svdvals(hidden_TD) ** power
    p = weights / weights.sum()
    return float(torch.exp(-(p * p.clamp_min(1e-300).log()).sum()))


def golden_matrices() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    full = torch.tensor(rng.standard_normal((64, 256)))
    low = torch.tensor(rng.standard_normal((64, 4)) @ rng.standard_normal((4, 256)))
    return full, low


def test_equal_singular_values_count_every_direction() -> None:
    assert float(effective_rank(torch.eye(8), center=False)) == pytest.approx(8, rel=1e-12)


def test_two_directions_by_hand() -> None:
    # p = (3/4, 1/4): exp(−¾ ln ¾ − ¼ ln ¼); squared, p = (9/10, 1/10).
    matrix = torch.diag(torch.tensor([3.0, 1.0]))
    assert float(effective_rank(matrix, center=False)) == pytest.approx(1.7547654, abs=1e-7)
    assert float(effective_rank(matrix, center=False, power=2)) == pytest.approx(
        1.3841455, abs=1e-7
    )


def test_goldens_of_random_matrices() -> None:
    full, low = golden_matrices()
    assert float(effective_rank(full)) == pytest.approx(60.80124, abs=1e-5)
    assert float(effective_rank(full, power=2)) == pytest.approx(55.4054, abs=1e-4)
    assert float(effective_rank(full, center=False)) == pytest.approx(61.7293, abs=1e-4)
    assert float(effective_rank(low)) == pytest.approx(3.9561, abs=1e-4)
    assert float(effective_rank(low, power=2)) == pytest.approx(3.8376, abs=1e-4)


def test_float32_input_loses_no_more_than_its_own_rounding() -> None:
    # A float32 Gram matrix would put 60 false directions of 3e-4 into the low-rank spectrum.
    for matrix in golden_matrices():
        assert float(effective_rank(matrix.float())) == pytest.approx(
            by_svd(matrix.float()), rel=1e-6
        )
        assert float(effective_rank(matrix.float())) == pytest.approx(by_svd(matrix), rel=1e-4)


def test_a_large_common_mean_changes_nothing() -> None:
    hidden_TD = torch.randn(200, 48, generator=torch.Generator().manual_seed(1)).double()
    mask_BT = torch.ones(1, 200, dtype=torch.bool)
    plain = window_ranks(hidden_TD[None], mask_BT)
    shifted = window_ranks(hidden_TD[None] + 1e4, mask_BT)
    torch.testing.assert_close(shifted, plain, rtol=1e-6, atol=0)


def test_tall_matrices_use_the_small_side() -> None:
    hidden_TD = torch.randn(90, 7, generator=torch.Generator().manual_seed(2))
    assert float(effective_rank(hidden_TD)) == pytest.approx(by_svd(hidden_TD), rel=1e-9)
    assert float(effective_rank(hidden_TD)) <= 7


def test_no_spread_is_rank_one() -> None:
    assert float(effective_rank(torch.ones(5, 3))) == 1.0
    assert float(effective_rank(torch.zeros(5, 3), center=False)) == 1.0


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 75), min_size=1, max_size=4),
    window=st.integers(2, 24),
    stride=st.integers(1, 24),
    power=st.sampled_from((1, 2)),
    center=st.booleans(),
)
def test_windows_equal_the_definition(
    lengths: list[int], window: int, stride: int, power: int, center: bool
) -> None:
    """Ragged responses, strides that divide the window and strides that do not."""
    generator = torch.Generator().manual_seed(sum(lengths))
    hidden_BTD = torch.randn(len(lengths), max(lengths), 6, generator=generator)
    mask_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    hidden_BTD[~mask_BT] = torch.nan
    ranks_BW = window_ranks(
        hidden_BTD, mask_BT, window=window, stride=stride, power=power, center=center
    )
    for b, length in enumerate(lengths):
        starts = range(0, max(1, length - window + 1), stride)
        expected = [
            by_svd(hidden_BTD[b, i : min(i + window, length)], power=power, center=center)
            if length > 1 or not center
            else 1.0
            for i in starts
        ]
        got = ranks_BW[b][~ranks_BW[b].isnan()].tolist()
        assert got == pytest.approx(expected, rel=1e-6)


def test_trajectory_takes_the_least_window() -> None:
    # Thirty-two independent directions, then a stretch that only moves along one line.
    wide_TD = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    line_TD = torch.linspace(0, 1, 64)[:, None] * torch.ones(64)
    hidden_BTD = torch.cat([wide_TD, line_TD])[None]
    mask_BT = torch.ones(1, 128, dtype=torch.bool)
    assert float(trajectory_rank(hidden_BTD, mask_BT)) == pytest.approx(1, abs=1e-4)
    mean = trajectory_rank(hidden_BTD, mask_BT, reduce="mean")
    expected = [by_svd(hidden_BTD[0, i : i + 64]) for i in (0, 32)] + [1.0]
    assert float(mean) == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_only_the_masked_tokens_count() -> None:
    # Left-padded and interleaved masks: the response is its tokens in order.
    hidden_TD = torch.randn(40, 8, generator=torch.Generator().manual_seed(4))
    padded_BTD = torch.full((1, 80, 8), torch.nan)
    padded_BTD[0, 1::2] = hidden_TD
    mask_BT = torch.arange(80)[None] % 2 == 1
    assert float(trajectory_rank(padded_BTD, mask_BT, window=16, stride=8)) == pytest.approx(
        float(trajectory_rank(hidden_TD[None], torch.ones(1, 40), window=16, stride=8))
    )


def test_chunks_of_any_size_give_the_same_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlvr_decode.training.rank import spectral

    hidden_BTD = torch.randn(5, 60, 12, generator=torch.Generator().manual_seed(5))
    mask_BT = torch.arange(60) < torch.tensor([60, 9, 33, 50, 60])[:, None]
    whole = window_ranks(hidden_BTD, mask_BT, window=16, stride=8)
    monkeypatch.setattr(spectral, "_GRAM_ELEMENTS", 16 * 16 * 7)
    torch.testing.assert_close(
        window_ranks(hidden_BTD, mask_BT, window=16, stride=8), whole, equal_nan=True
    )


def test_prefixes_grow_to_the_whole_response() -> None:
    hidden_TD = torch.randn(100, 32, generator=torch.Generator().manual_seed(6))
    expected = [by_svd(hidden_TD[:end]) for end in (40, 80, 100)]
    assert prefix_ranks(hidden_TD).tolist() == pytest.approx(expected, rel=1e-6)


def test_no_gradient_flows() -> None:
    hidden_BTD = torch.randn(1, 20, 4, requires_grad=True)
    assert not trajectory_rank(hidden_BTD, torch.ones(1, 20)).requires_grad


def test_bad_settings_name_the_value() -> None:
    hidden_BTD, mask_BT = torch.ones(2, 4, 3), torch.ones(2, 4)
    with pytest.raises(ValueError, match="power=3"):
        effective_rank(hidden_BTD[0], power=3)
    with pytest.raises(ValueError, match="reduce='max'"):
        trajectory_rank(hidden_BTD, mask_BT, reduce="max")
    with pytest.raises(ValueError, match="window=1"):
        trajectory_rank(hidden_BTD, mask_BT, window=1)
    mask_BT[1] = 0
    with pytest.raises(ValueError, match="response 1 has no tokens"):
        trajectory_rank(hidden_BTD, mask_BT)
