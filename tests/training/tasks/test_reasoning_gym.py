"""reasoning-gym's puzzles: streams that repeat, splits that never meet, the package's scores."""

import pytest

from rlvr_decode.training.tasks.data import make_task
from rlvr_decode.training.tasks.task import BatchJudge, Prompt

SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def make(name="basic_arithmetic", **options):
    return make_task(f"reasoning_gym:{name}", {"workers": 1} | options)


def test_a_puzzle_depends_on_seed_split_and_number_alone():
    task, again = make(settings=SMALL), make(settings=SMALL)
    forwards = [task.prompt(i, seed=1, split="train") for i in range(30)]
    assert forwards == [again.prompt(i, seed=1, split="train") for i in reversed(range(30))][::-1]
    assert forwards != [task.prompt(i, seed=2, split="train") for i in range(30)]


def test_no_question_is_in_both_splits():
    task = make(settings=SMALL)
    asked = {
        split: {task.prompt(i, seed=0, split=split).text for i in range(300)}
        for split in ("train", "held_out")
    }
    assert not asked["train"] & asked["held_out"]
    assert min(map(len, asked.values())) > 100


@pytest.mark.parametrize("name", ["basic_arithmetic", "gcd", "prime_factorization", "leg_counting"])
def test_the_package_scores(name):
    task = make(name)
    prompts = [task.prompt(i, seed=0, split="train") for i in range(4)]
    assert isinstance(task, BatchJudge)
    verdicts = task.judge(prompts * 2, [p.answer for p in prompts] + ["[1, 2]"] * 4)
    assert all(right > wrong for right, wrong in zip(verdicts[:4], verdicts[4:], strict=True))
    assert not any(task.take_counts().values())


def test_a_scorer_that_trips_over_an_answer_gives_nothing():
    task = make("boxnet")
    prompt = task.prompt(0, seed=0, split="train")
    assert task.judge([prompt] * 2, ["[1, 2]", '{"a": 1}']) == [0.0, 0.0]
    assert not any(task.take_counts().values())


def test_only_the_last_number_is_scored():
    task = make(settings=SMALL, number=True)
    prompt = next(
        p for p in (task.prompt(i, seed=0, split="train") for i in range(99)) if p.answer[0] == "-"
    )
    right = prompt.answer
    said = [f"It is 3 or {right}.", f"{right}", f"{right} or 3", right[1:], "no number", ""]
    assert [task.reward(prompt, each) == 1 for each in said] == [True, True] + [False] * 4


def test_only_what_the_tag_holds_is_scored():
    task = make("gcd", tag="answer", template="{prompt}\nGo.")
    prompt = task.prompt(0, seed=0, split="train")
    assert prompt.text.endswith("\nGo.")
    right = prompt.answer
    responses = [
        f"<answer>{right}</answer>",
        f"<answer>0</answer> no: <answer> {right} </answer> done",
        f"<answer>{right}</answer><answer>0</answer>",
        f"<answer>{right}",
        right,
        "",
    ]
    assert task.judge([prompt] * 6, responses) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert task.reward(prompt, responses[0]) == 1.0


def test_a_puzzle_can_be_asked_as_a_chat():
    prompt = make("gcd", chat=True).prompt(0, seed=0, split="train")
    assert prompt.messages == (("user", prompt.text),)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="reasoning_gym:sums: unknown; known: .*basic_arithmetic"):
        make("sums")
    with pytest.raises(ValueError, match="basic_arithmetic: settings .*unexpected keyword"):
        make(settings={"terms": 2})
    with pytest.raises(ValueError, match="basic_arithmetic: settings .*min_terms"):
        make(settings={"min_terms": -1})
    with pytest.raises(ValueError, match="template='Q': needs {prompt}"):
        make(template="Q")
    with pytest.raises(ValueError, match="task reasoning_gym:gcd: unknown terms; known: settings"):
        make("gcd", terms=2)


def test_a_prompt_of_another_puzzle_is_an_error():
    task = make("gcd")
    prompt = task.prompt(0, seed=0, split="train")
    source = '{"seed": 1, "question": 2}'
    with pytest.raises(RuntimeError, match="the same seed made another puzzle"):
        task.judge([Prompt(text=prompt.text, answer=prompt.answer, source=source)], ["1"])


def test_a_task_with_too_few_puzzles_to_hold_any_out_says_so(monkeypatch):
    monkeypatch.setattr("rlvr_decode.training.tasks.reasoning_gym._digest", lambda text: 1)
    with pytest.raises(ValueError, match="puzzles hold none for held_out"):
        make("gcd").prompt(0, seed=0, split="held_out")
