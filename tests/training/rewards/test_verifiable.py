"""Rewards against answers that try to fool them."""

import time

import pytest

from rlvr_decode.training.rewards.verifiable import after_semicolon, exact, last_number


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("7+6+0=13,4+8+1=13,3+5+1=09;0933", 1),
        (";0933", 1),
        ("0933;0000;0933", 1),
        ("0933", 0),
        ("", 0),
        (";", 0),
        (";0933;", 0),
        (";0933 ", 0),
        (";933", 0),
        (";00933", 0),
        (";+0933", 0),
        (";٠٩٣٣", 0),
        (";0933\n", 0),
        (";0933;0934", 0),
        (";__import__('os').getcwd()", 0),
    ],
)
def test_after_semicolon(response, reward):
    assert after_semicolon(response, "0933") == reward


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("the answer is 1012", 1),
        ("the answer is 1,012.", 1),
        ("1012.0", 1),
        ("1012.00 (not 7): 1012", 1),
        ("1012, or 1013", 0),
        ("-1012", 0),
        ("x1012", 0),
        ("1012x", 0),
        ("1e1012", 0),
        ("1.2.1012", 0),
        ("١٠١٢", 0),
        ("1012" * 50, 0),
        ("nan", 0),
        ("inf", 0),
        ("", 0),
        ("506+506", 0),
        ("2024/2", 0),
    ],
)
def test_last_number(response, reward):
    assert last_number(response, "1012") == reward


def test_last_number_refuses_an_answer_that_is_none():
    with pytest.raises(ValueError, match="answer 'twelve': last_number needs a number"):
        last_number("12", "twelve")


def test_exact_ignores_only_outer_white_space():
    assert exact(" Paris\n", "Paris") == 1
    assert exact("paris", "Paris") == 0
    assert exact("Pa ris", "Paris") == 0


@pytest.mark.parametrize("flood", ["9", "1,", "1,000", ".", "-", "1.", ";", "9 ", "−1"])
def test_no_flood_of_text_takes_long(flood):
    text = flood * (1_000_000 // len(flood))
    started = time.process_time()
    for reward in (exact, after_semicolon, last_number):
        reward(text, "1012")
    assert time.process_time() - started < 2
