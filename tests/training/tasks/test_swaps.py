"""The text task: its puzzles, its verdicts, what its authors get wrong, and its tokens."""

import random
import statistics

import pytest

from rlvr_decode.training.config import Architecture
from rlvr_decode.training.policy.model import new_tokenizer
from rlvr_decode.training.pretrain import corpus_texts
from rlvr_decode.training.recipe import read_recipe
from rlvr_decode.training.soe.config import SOE
from rlvr_decode.training.soe.text import truncation_points
from rlvr_decode.training.tasks.data import make_task
from rlvr_decode.training.tasks.swaps import Swaps, _read, solution
from rlvr_decode.training.tasks.task import Prompt

PROMPT = Prompt(
    text="Ann has a hat, Bob a pen, Eve a cup. Ann and Eve swap. Bob and Eve swap. "
    "Ann and Bob swap. Ann and Eve swap. Who has the pen?\n",
    answer="Ann",
)
TASK = Swaps()


def careful(prompt, *, hasty=0.0, slip=0.0, seed=0):
    return solution(*_read(prompt.text), random.Random(seed), hasty=hasty, slip=slip)


def test_a_worked_response_by_hand():
    steps = "Ann and Eve swap: Bob. Bob and Eve swap: Eve. Ann and Bob swap: Eve."
    assert careful(PROMPT) == f"Bob has it. {steps} Ann and Eve swap: Ann. So Ann."
    assert careful(PROMPT, hasty=1.0) == f"Bob has it. {steps} So Eve."


def test_careful_work_is_right_and_a_puzzle_has_one_answer():
    prompts = [TASK.prompt(i, seed=3, split="train") for i in range(200)]
    assert all(TASK.reward(prompt, careful(prompt)) == 1 for prompt in prompts)
    assert len({prompt.answer for prompt in prompts}) == 10


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("So Ann.", 1),
        ("Bob has it. So Ann.", 1),
        ("So Bob.", 0),
        ("So Ann. So Bob.", 0),
        ("So Ann", 0),
        ("So Ann. ", 0),
        ("Ann.", 0),
        ("", 0),
    ],
)
def test_only_the_last_sentence_is_judged(response, reward):
    assert TASK.reward(PROMPT, response) == reward


def test_the_splits_do_not_meet_and_repeat_themselves():
    train, held_out = (
        {TASK.prompt(i, seed=0, split=split).text for i in range(400)}
        for split in ("train", "held_out")
    )
    assert not train & held_out
    assert TASK.prompt(7, seed=1, split="train") == TASK.prompt(7, seed=1, split="train")
    assert TASK.prompt(7, seed=2, split="train") != TASK.prompt(7, seed=1, split="train")


def test_most_demonstrations_are_wrong_and_habits_depend_on_the_prompt():
    rng = random.Random(0)
    prompts = [TASK.prompt(i, seed=0, split="train") for i in range(3000)]
    pairs = [(prompt, TASK.demonstration(prompt, rng)) for prompt in prompts]
    # Three standard errors of a share of 3000 are .027.
    assert 0.45 < statistics.fmean(TASK.reward(*pair) for pair in pairs) < 0.53

    def shortcuts(owner):
        mine = [text for prompt, text in pairs if _read(prompt.text)[0] == owner]
        return statistics.fmean(text == f"So {owner}." for text in mine)

    assert shortcuts("Ann") < 0.3 and shortcuts("Zoe") > 0.7


def test_byte_pairs_make_words_of_the_corpus_and_spell_the_rest():
    architecture = Architecture(tokenizer="byte_pairs", vocabulary=384)
    tokenizer = new_tokenizer(architecture, corpus_texts(make_task("swaps", {}), seed=0))
    assert len(tokenizer) <= 384
    words = tokenizer.tokenize("Ann and Eve swap: Bob.")
    assert [word.strip("Ġ") for word in words] == ["Ann", "and", "Eve", "swap", ":", "Bob", "."]
    for text in (PROMPT.text, "Bob ha", "naïve 雪\t\n"):
        ids = tokenizer.encode(text)
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_tokenizer_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="vocabulary=99: the tokenizer of characters has 100"):
        new_tokenizer(Architecture(vocabulary=99))
    with pytest.raises(ValueError, match="vocabulary=200: the tokenizer of byte_pairs has 260"):
        new_tokenizer(Architecture(tokenizer="byte_pairs", vocabulary=200), ["a"])
    with pytest.raises(ValueError, match="tokenizer='words': must be characters or byte_pairs"):
        new_tokenizer(Architecture(tokenizer="words"))


def test_the_recipe_of_soe_reopens_sentences():
    recipe = read_recipe(SOE, "soe", "swaps")
    chain = careful(PROMPT)
    starts = truncation_points(chain, recipe.search.cuts, recipe.search.step)
    assert [chain[start:].split()[0] for start in starts] == ["Bob", "Ann", "Ann", "Ann"]
    assert recipe.task.name == "swaps" and recipe.teacher != recipe.student
