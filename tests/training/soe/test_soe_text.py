"""Where steps begin, and what counts as a near-duplicate."""

import pytest

from rlvr_decode.training.soe.text import distinct, similarity, step_starts, truncation_points

CHAIN = "Add the units. Carry one.\n\nThen the tens.\nDone"


def test_steps_begin_after_sentences_and_line_breaks() -> None:
    starts = step_starts(CHAIN)
    assert [CHAIN[start : start + 4] for start in starts] == ["Add ", "Carr", "Then", "Done"]
    assert [CHAIN[:start] for start in starts][2] == "Add the units. Carry one.\n\n"


def test_decimal_points_end_no_sentence() -> None:
    assert step_starts("x = 3.14 and so on") == [0]


def test_other_separators_can_be_named() -> None:
    assert step_starts("7+6+0=13,4+8+1=13;33", "[,;]") == [0, 9, 18]


def test_an_empty_chain_can_only_be_cut_at_its_start() -> None:
    assert truncation_points("", 4) == [0]
    assert step_starts("One.\n") == [0]


def test_points_are_spread_evenly() -> None:
    response = "\n".join("abcdefghij")
    assert truncation_points(response, 5) == [0, 4, 8, 12, 16]
    assert truncation_points(response, 3) == [0, 6, 12]
    assert truncation_points(response, 99) == list(range(0, 20, 2))


def test_similarity_by_hand() -> None:
    # Trigrams of "··ab·" and "··ac·": ··a, ·ab/·ac, ab·/ac·.
    assert similarity("ab", "ac") == pytest.approx(1 / 3)
    assert similarity("Ab  c", "ab c ") == pytest.approx(1)
    assert similarity("", "") == pytest.approx(1)
    assert similarity("abc", "xyz") == 0


def test_near_duplicates_of_earlier_texts_go() -> None:
    long = "first add the units, then carry, then add the tens, and write down the sum: 42"
    texts = [long, long.replace("42", "43"), "the sum is 42", long + "."]
    assert distinct(texts, 0.95) == [0, 2]
    assert distinct(texts, 1.0) == [0, 1, 2, 3]
