"""Intervals that cover what they say, and estimators against counting."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from rlvr_decode.evaluate.statistics import (
    auroc,
    bootstrap_interval,
    paired_difference,
    pass_at_k,
    student_t_quantile,
    t_interval,
)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 999])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.975, 0.9995])
def test_student_quantiles_are_scipys(probability, freedom):
    expected = stats.t.ppf(probability, freedom)
    assert student_t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_t_interval_by_hand():
    # mean 2, s = 1, error 1/√3, t(2 degrees, 97.5 %) = 4.302653
    found = t_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.prompts) == (2.0, 3)
    assert found.high - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert found.low + found.high == pytest.approx(4.0)
    assert found.excludes_zero is False and t_interval([1.0, 1.1, 1.2]).excludes_zero


def simulated(generator, prompts, samples=2):
    """Two arms on prompts that differ in difficulty; the true gain is 0.1 on every prompt."""
    difficulty = generator.uniform(0.05, 0.85, prompts)
    ours = generator.binomial(samples, difficulty + 0.1) / samples
    theirs = generator.binomial(samples, difficulty) / samples
    return ours.tolist(), theirs.tolist()


@pytest.mark.parametrize(
    ("interval", "prompts", "rounds"),
    [(t_interval, 60, 4000), (t_interval, 200, 4000), (bootstrap_interval, 60, 1200)],
)
def test_intervals_cover_a_known_effect_as_often_as_they_say(interval, prompts, rounds):
    generator = np.random.default_rng(20260)
    found = [
        paired_difference(*simulated(generator, prompts), interval=interval) for _ in range(rounds)
    ]
    covered = sum(each.low <= 0.1 <= each.high for each in found) / rounds
    # The error of the simulation itself is below 0.7 points.
    assert covered == pytest.approx(0.95, abs=0.02)
    missed_above = sum(each.low > 0.1 for each in found) / rounds
    assert missed_above == pytest.approx(0.025, abs=0.015)


def test_samples_that_share_a_prompt_are_not_counted_one_by_one():
    """Counting every sample as if it were a prompt covers too rarely: the reason for the unit."""
    generator = np.random.default_rng(1)
    naive = proper = 0
    for _ in range(400):
        difficulty = generator.beta(0.4, 0.4, 50)
        correct = generator.random((50, 16)) < difficulty[:, None]
        by_sample, by_prompt = t_interval(correct.ravel().tolist()), t_interval(correct.mean(1))
        naive += by_sample.low <= 0.5 <= by_sample.high
        proper += by_prompt.low <= 0.5 <= by_prompt.high
    assert naive / 400 < 0.6 and proper / 400 > 0.92


def test_pairing_narrows_the_interval():
    ours, theirs = simulated(np.random.default_rng(3), 500, samples=16)
    paired = paired_difference(ours, theirs)
    apart = [t_interval(ours), t_interval(theirs)]
    assert paired.high - paired.low < 0.75 * max(each.high - each.low for each in apart)
    with pytest.raises(ValueError, match="3 values against 2: pair them by prompt"):
        paired_difference([1, 2, 3], [1, 2])


def test_equal_values_have_an_interval_of_no_width():
    for interval in (t_interval, bootstrap_interval):
        found = interval([0.5] * 10)
        assert (found.low, found.mean, found.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("interval", [t_interval, bootstrap_interval])
def test_what_has_no_interval_is_refused(interval):
    with pytest.raises(ValueError, match="1 prompts: an interval needs at least 2"):
        interval([1.0])
    with pytest.raises(ValueError, match="level=1: must be between 0 and 1"):
        interval([1.0, 2.0], level=1)


@pytest.mark.parametrize("samples, correct", [(1, 0), (4, 1), (6, 3), (7, 7), (8, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(samples, correct):
    marks = [1] * correct + [0] * (samples - correct)
    for k in range(1, samples + 1):
        subsets = list(combinations(marks, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k(samples, correct, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_unbiased():
    generator = np.random.default_rng(5)
    drawn = generator.binomial(8, 0.2, 20_000)
    assert np.mean([pass_at_k(8, int(c), 4) for c in drawn]) == pytest.approx(1 - 0.8**4, abs=0.006)


@pytest.mark.parametrize("arguments", [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_of_what_was_not_drawn_is_refused(arguments):
    with pytest.raises(ValueError, match="must be from"):
        pass_at_k(*arguments)


def test_auroc_against_counting_with_ties():
    generator = np.random.default_rng(0)
    above, below = generator.integers(0, 6, 40), generator.integers(0, 5, 30)
    wins = [(a > b) + 0.5 * (a == b) for a in above for b in below]
    assert auroc(above, below) == pytest.approx(np.mean(wins), abs=1e-12)
    assert auroc([2, 3], [0, 1]) == 1.0 and auroc([0], [0]) == 0.5
    with pytest.raises(ValueError, match="both are needed"):
        auroc([], [1])
