"""A finding: its median, its bar, and how it is printed."""

import math

import pytest
from findings import Finding, number, ratios


def finding(values, **options):
    return Finding(what="a step", rival="theirs", values=values, **options)


def test_the_median_is_held_to_the_bar():
    assert finding([0.5, 3.0, 0.6], at_most=0.6).holds is True
    assert finding([0.5, 3.0, 0.61], at_most=0.6).holds is False
    assert finding([0.98, 0.96, 0.97], at_least=0.97).holds is True
    assert finding([0.98, 0.96, 0.96], at_least=0.97).holds is False
    assert finding([2.0]).holds is None


def test_what_is_no_number_meets_no_bar():
    assert finding([math.nan], at_most=1).holds is False
    assert finding([math.nan], at_least=1).holds is False


def test_the_spread_is_shown_where_there_is_one():
    assert finding([0.5, 3.0, 0.6]).spread == "0.6 × (0.5–3)"
    assert finding([2.0]).spread == "2 ×"
    assert finding([7.0, 7.0], unit="").spread == "7"


def test_a_finding_has_values_and_at_most_one_bar():
    with pytest.raises(ValueError, match="at least one round"):
        finding([])
    with pytest.raises(ValueError, match="two bars"):
        finding([1.0], at_most=1, at_least=1)


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (1.0, "1"),
        (0.1234, "0.12"),
        (0.0123, "0.0123"),
        (12.34, "12.3"),
        (120.0, "120"),
        (1234.5, "1234"),
        (4.2e-6, "4.2e-06"),
        (2e6, "2.0e+06"),
        (-3.456, "-3.46"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_rounds_are_compared_one_by_one():
    assert ratios([1.0, 9.0], [2.0, 3.0]) == [0.5, 3.0]
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])
