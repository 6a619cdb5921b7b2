"""Every built-in reward against answers written to hang it, run in it or speak in its place."""

import contextlib
import os
import random
import subprocess
import time

import pytest
from hostile_answers import BOMBS, hostile

from rlvr_decode.training.rewards.guard import guarded
from rlvr_decode.training.rewards.judging import Judge, read_rewards
from rlvr_decode.training.tasks.reasoning_gym import EVALUATING, ReasoningGym


def huge_answers(length):
    units = ("9", "$", "{", r"\boxed{", "a ", "1,", "<think>", "\n", "é")
    return [(unit * (length // len(unit) + 1))[:length] for unit in units]


def judge_of(reward, **settings):
    return Judge(read_rewards(reward), **({"workers": 1} | settings))


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A directory to run in, where nothing may appear."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


# The form has one short way to match, so that only an answer of that form gets the reward.
BUILT_IN = ("exact", "after_semicolon", "last_number", {"name": "regex", "pattern": "1[0-8]7"})


@pytest.mark.parametrize("reward", BUILT_IN, ids=str)
def test_no_hostile_answer_is_rewarded_or_costs_more_than_itself(reward, canary):
    answers = list(hostile(3000, seed=0))
    judge = judge_of(reward)
    verdicts = judge.judge(["137", *answers, "137"], ["137"] * 3002)
    expected = 0.0 if reward == "after_semicolon" else 1.0
    assert verdicts == [expected, *[0.0] * 3000, expected]
    assert not any(judge.take_counts().values())
    judge.close()


def test_math_verify_against_hostile_answers(canary):
    answers = list(hostile(2000, seed=1))
    judge = judge_of("math_verify", time_out=5.0)
    verdicts = judge.judge(["$137$", *answers, "137"], ["137"] * 2002)
    assert verdicts == [1.0, *[0.0] * 2000, 1.0]
    counts = judge.take_counts()
    # What the guard refuses is counted as an error; it stops little that is harmless.
    assert counts["reward_errors"] <= 20
    assert counts["reward_timeouts"] + counts["reward_crashes"] <= 4
    judge.close()


def test_an_answers_verdict_does_not_depend_on_its_neighbours(canary):
    last_number = "rlvr_decode.training.rewards.verifiable:last_number"
    rewards = [{"name": "math_verify", "weight": 0.5}, {"name": last_number, "weight": 0.25}]
    rewards.append({"name": "regex", "weight": 0.25, "pattern": r".*\d+.*"})
    judge = judge_of(rewards, time_out=2.0)
    answers = [*hostile(150, seed=3), "$137$", "it is 138"]
    shuffled = random.Random(0).sample(answers, len(answers))
    verdicts = dict(zip(answers, judge.judge(answers, ["137"] * len(answers)), strict=True))
    assert verdicts["$137$"] == 1.0 and verdicts["it is 138"] == 0.25
    assert judge.judge(shuffled, ["137"] * len(answers)) == [verdicts[each] for each in shuffled]
    judge.close()


@pytest.mark.parametrize("bomb", BOMBS[:4], ids=len)
def test_an_answer_that_hangs_math_verify_costs_itself_alone(bomb):
    judge = judge_of("math_verify", time_out=0.7)
    verdicts = judge.judge(["$137$", rf"\boxed{{{bomb}}}", "$137$"], ["137"] * 3)
    assert verdicts == [1.0, 0.0, 1.0]
    counts = judge.take_counts()
    assert counts["reward_timeouts"] + counts["reward_crashes"] == 1
    judge.close()


@pytest.mark.parametrize("reward", [*BUILT_IN, "math_verify"], ids=str)
def test_ten_megabytes_hang_nothing(reward):
    judge = judge_of(reward, time_out=5.0)
    started = time.monotonic()
    verdicts = judge.judge(huge_answers(10_000_000), ["137"] * 9)
    assert verdicts == [0.0] * 9
    assert not any(judge.take_counts().values())
    assert time.monotonic() - started < 45
    judge.close()


def test_reasoning_gym_against_hostile_answers(canary):
    task = ReasoningGym("chain_sum", workers=1, tag="answer")
    prompt = task.prompt(0, seed=0, split="train")
    answers = [f"<answer>{text}</answer>" for text in hostile(500, seed=2)]
    right = f"so <answer> {prompt.answer} </answer>"
    verdicts = task.judge([prompt] * 502, [right, *answers, right])
    assert verdicts[0] == verdicts[-1] == 1.0
    assert max(verdicts[1:-1]) < 1.0
    assert not any(task.take_counts().values())


@pytest.mark.parametrize("name", EVALUATING)
def test_scorers_that_evaluate_text_are_refused(name):
    with pytest.raises(ValueError, match=f"reasoning_gym:{name}: its scorer evaluates text"):
        ReasoningGym(name)


@pytest.mark.parametrize(
    "act",
    [
        lambda: compile("1 + 1", "<string>", "eval"),
        lambda: os.open("made", os.O_WRONLY | os.O_CREAT),
        lambda: os.system("touch made"),
        lambda: subprocess.Popen(["touch", "made"]),
    ],
)
def test_guarded_refuses_to_act_even_when_the_refusal_is_swallowed(act, canary):
    with (
        pytest.raises(PermissionError, match="a reward tried to"),
        guarded(),
        contextlib.suppress(PermissionError),
    ):
        act()
    assert len(compile("1 + 1", "<string>", "eval").co_code)
