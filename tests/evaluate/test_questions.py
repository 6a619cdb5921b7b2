"""Which questions are asked, and which stay fresh."""

from dataclasses import dataclass
from itertools import count

import pytest

from rlvr_decode.evaluate.questions import choose_questions, digest


@dataclass(frozen=True)
class Asked:
    text: str
    messages: tuple = ()


def stream(of):
    return (Asked(str(number)) for number in of)


def test_no_question_is_asked_twice_nor_on_both_sides():
    shared, fresh = choose_questions(stream([1, 1, *range(500), 3]), prompts=40, confirm=60)
    texts = [question.text for question in [*shared, *fresh]]
    assert (len(shared), len(fresh)) == (40, 60) and len(set(texts)) == 100


def test_asking_for_more_keeps_what_is_fresh():
    few, fresh_of_few = choose_questions(stream(count()), prompts=10, confirm=10)
    many, fresh_of_many = choose_questions(stream(count()), prompts=90, confirm=40)
    assert few == many[:10] and fresh_of_few == fresh_of_many[:10]
    assert not {digest(q) for q in many} & {digest(q) for q in fresh_of_few}


def test_a_file_is_taken_whole():
    shared, fresh = choose_questions(stream(range(100)), prompts=None, confirm=None)
    assert len(shared) + len(fresh) == 100 and min(len(shared), len(fresh)) > 30
    shared, fresh = choose_questions(stream(range(100)), prompts=None, confirm=0)
    assert (len(shared), len(fresh)) == (100, 0)


def test_too_few_questions_are_an_error_even_of_an_endless_stream():
    repeating = (Asked(str(number % 7)) for number in count())
    with pytest.raises(ValueError, match="prompts=8: the task has only 7 different ones"):
        choose_questions(repeating, prompts=8, confirm=0)
    with pytest.raises(ValueError, match="confirm=30: the task has only .*half of them are kept"):
        choose_questions(stream(range(40)), prompts=1, confirm=30)
    with pytest.raises(ValueError, match="0 prompts: an interval over prompts needs at least 2"):
        choose_questions(stream([]), prompts=None, confirm=0)
