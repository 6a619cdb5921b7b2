"""The bias manifold and Ω, against hand-made planes and a D × D projector."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr_decode.training.soe.manifold import bias_manifold, orthogonality

# Four look-aheads around (5, 5, 5) that only move along the first two axes, more along the first.
PLANE_ND = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]]) + 5


def omega(step: list[float], **settings: float) -> float:
    manifold = bias_manifold(PLANE_ND, **settings)
    return float(orthogonality(torch.tensor([step]) + 5, manifold))


def test_inside_outside_and_between() -> None:
    assert omega([2.0, -1.0, 0.0]) == pytest.approx(0, abs=1e-7)
    assert omega([0.0, 0.0, 0.1]) == pytest.approx(1, abs=1e-6)
    assert omega([1.0, 0.0, 1.0]) == pytest.approx(1 / math.sqrt(2), abs=1e-6)
    assert omega([3.0, 0.0, 4.0]) == pytest.approx(0.8, abs=1e-6)


def test_few_directions_leave_more_outside() -> None:
    # Variances 9 : 1, so one direction explains 90 % of it.
    for few in ({"k": 1}, {"eps": 0.1 + 1e-9}):
        assert omega([0.0, 1.0, 0.0], **few) == pytest.approx(1, abs=1e-6)
    assert omega([0.0, 1.0, 0.0], eps=0.09) == pytest.approx(0, abs=1e-6)


def test_centring_leaves_one_direction_less_than_look_aheads() -> None:
    lookahead_ND = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    basis_KD = bias_manifold(lookahead_ND, k=99).basis_KD
    assert basis_KD.shape == (7, 40)
    torch.testing.assert_close(basis_KD @ basis_KD.mT, torch.eye(7).double())


@pytest.mark.parametrize("jitter", [0.0, 1e-6])
def test_identical_look_aheads_span_nothing(jitter: float) -> None:
    noise = torch.randn(6, 30, generator=torch.Generator().manual_seed(1))
    lookahead_ND = torch.full((6, 30), 10.0) + jitter * noise
    manifold = bias_manifold(lookahead_ND)
    assert len(manifold.basis_KD) == 0
    assert float(orthogonality(torch.ones(1, 30), manifold)) == pytest.approx(1)


def test_a_probe_at_the_mean_goes_nowhere() -> None:
    assert omega([0.0, 0.0, 0.0]) == 0.0


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(2, 20), st.integers(1, 12), st.integers(0, 99))
def test_equals_the_projector_of_the_covariance(n: int, d: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lookahead_ND = torch.randn(n, d, generator=generator, dtype=torch.float64)
    probe_MD = torch.randn(5, d, generator=generator, dtype=torch.float64)
    k = min(k, n - 1, d)
    centred_ND = lookahead_ND - lookahead_ND.mean(0)
    basis_KD = torch.linalg.svd(centred_ND, full_matrices=False).Vh[:k]
    step_MD = probe_MD - lookahead_ND.mean(0)
    outside_MD = step_MD @ (torch.eye(d) - basis_KD.mT @ basis_KD).double()
    expected_M = outside_MD.norm(dim=1) / step_MD.norm(dim=1)
    got_M = orthogonality(probe_MD, bias_manifold(lookahead_ND, k=k))
    torch.testing.assert_close(got_M, expected_M, rtol=1e-6, atol=1e-7)
    assert ((got_M >= 0) & (got_M <= 1 + 1e-12)).all()


def test_bad_settings_name_the_value() -> None:
    with pytest.raises(ValueError, match="1 look-aheads"):
        bias_manifold(PLANE_ND[:1])
    with pytest.raises(ValueError, match="eps=1"):
        bias_manifold(PLANE_ND, eps=1)
