"""Unbiased pass@k against exact fractions, and the paired gap to base."""

from fractions import Fraction
from math import comb, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_decode.training.evaluation.boundary import boundary_gap, pass_at_k, pass_curve


@given(st.data())
def test_pass_at_k_is_the_combinatorial_formula(data: st.DataObject) -> None:
    samples = data.draw(st.integers(1, 400))
    correct = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    exact = 1 - Fraction(comb(samples - correct, k), comb(samples, k))
    assert pass_at_k(samples, correct, k) == pytest.approx(float(exact), rel=1e-9, abs=1e-12)


def test_extremes() -> None:
    assert pass_at_k(10, 0, 10) == 0.0
    assert pass_at_k(10, 1, 10) == 1.0
    assert pass_at_k(4, 3, 2) == 1.0
    assert pass_at_k(256, 64, 1) == pytest.approx(0.25, rel=1e-12)
    assert pass_at_k(2**20, 3, 2**10) == pytest.approx(1 - (1 - 2**-10) ** 3, rel=1e-5)


def test_curve_is_the_mean_over_prompts() -> None:
    assert pass_curve([0, 2, 4], 4, [1, 2]) == pytest.approx({1: 0.5, 2: (0 + 5 / 6 + 1) / 3})


def test_gap_shows_shrinkage() -> None:
    # The model always solves half of the prompts; base solves every one now and then.
    (at_1, at_8) = boundary_gap([8, 8, 0, 0], [2, 2, 2, 2], 8, [1, 8])
    assert (at_1.model, at_1.base, at_1.difference) == pytest.approx((0.5, 0.25, 0.25))
    assert (at_8.model, at_8.base, at_8.difference) == pytest.approx((0.5, 1.0, -0.5))
    # Paired differences ±0.5 around −0.5: deviation √(1/3), over four prompts.
    assert at_8.standard_error == pytest.approx(sqrt(1 / 3) / 2)


def test_bad_counts_are_named() -> None:
    with pytest.raises(ValueError, match="correct=5 of samples=4"):
        pass_at_k(4, 5, 1)
    with pytest.raises(ValueError, match="k=9: must be from 1 to 8"):
        pass_at_k(8, 1, 9)
    with pytest.raises(ValueError, match="1 prompts for the model and 2 for base"):
        boundary_gap([1], [1, 2], 4, [1])
