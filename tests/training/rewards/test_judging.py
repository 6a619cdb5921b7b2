"""Judging: order, sums, and rewards that hang, crash, exit, lie or interfere."""

import logging
import os
import signal
import threading
import time

import pytest

from rlvr_decode.training.rewards import judging
from rlvr_decode.training.rewards.guard import guarded
from rlvr_decode.training.rewards.judging import Judge, RewardError, Weighted, read_rewards
from rlvr_decode.training.rewards.verifiable import math_verify

REWARDS_OF_A_USER = """
import ctypes, os, sys, time

def length(response, answer, *, scale=1.0):
    return None if response == "skip" else len(response) * scale

def slow_first(response, answer):
    time.sleep(0.2 if response == "0" else 0)
    return float(response)

def trouble(response, answer):
    if response == "hang":
        while True:
            pass
    if response == "sleep":
        time.sleep(60)
    if response == "children":
        os.system("sleep 60 & sleep 60")
    if response == "segfault":
        ctypes.string_at(0)
    if response == "exit":
        os._exit(0)
    if response == "sys.exit":
        sys.exit(0)
    if response == "memory":
        return len(bytearray(8 << 30))
    if response == "print":
        print('{"id": 1, "value": 1.0}', flush=True)
    if response in ("write", "flood"):
        text = b'{"value": 1.0}\\n' if response == "write" else b"x" * (2 << 20)
        for descriptor in range(3, 20):
            try:
                os.write(descriptor, text)
            except OSError:
                pass
    return 0.5

def slow(response, answer):
    time.sleep(0.2)
    return 1

def raises(response, answer):
    if response == "bad":
        raise KeyError("a bug of the user's")
    return 1

def returns(response, answer):
    return {"nan": float("nan"), "inf": float("inf"), "list": [1.0, 2.0], "text": "1"}[response]
"""


@pytest.fixture
def judge_of(tmp_path, monkeypatch):
    """A judge of rewards, among them those of a user's module; ended after the test."""
    (tmp_path / "my_rewards.py").write_text(REWARDS_OF_A_USER)
    monkeypatch.syspath_prepend(str(tmp_path))
    judges = []

    def make(rewards, **settings):
        judges.append(Judge(read_rewards(rewards), **({"workers": 1} | settings)))
        return judges[-1]

    yield make
    for judge in judges:
        judge.close()


def none_counted(judge):
    return not any(judge.take_counts().values())


def test_verdicts_come_in_order_whoever_is_slow(judge_of):
    judge = judge_of("my_rewards:slow_first", workers=2)
    texts = [str(number) for number in range(20)]
    assert judge.judge(texts, [""] * 20) == list(range(20))
    assert none_counted(judge)


def test_a_weighted_sum_leaves_out_what_does_not_apply(judge_of):
    judge = judge_of(
        [
            {"name": "my_rewards:length", "weight": 2.0, "scale": 0.5},
            {"name": "exact", "weight": -3},
        ]
    )
    assert judge.judge(["abcd", "skip", "yes"], ["", "skip", "yes"]) == [4.0, -3.0, 0.0]
    assert none_counted(judge)


def test_where_no_reward_applies_there_is_none(judge_of):
    judge = judge_of("my_rewards:length")
    assert judge.judge(["skip", "abc"], ["", ""]) == [None, 3.0]
    assert judge.take_counts()["reward_skipped"] == 1
    assert none_counted(judge)


@pytest.mark.parametrize(
    ("trouble", "count"),
    [
        ("hang", "reward_timeouts"),
        ("sleep", "reward_timeouts"),
        ("children", "reward_timeouts"),
        ("segfault", "reward_crashes"),
        ("exit", "reward_crashes"),
        ("sys.exit", "reward_crashes"),
        ("memory", "reward_crashes"),
        ("write", "reward_crashes"),
        ("flood", "reward_crashes"),
    ],
)
def test_trouble_costs_one_sample_and_is_counted(judge_of, trouble, count):
    judge = judge_of("my_rewards:trouble", time_out=0.5, memory_gb=1.0)
    assert judge.judge(["a", trouble, "b", "c"], [""] * 4) == [0.5, 0.0, 0.5, 0.5]
    counts = judge.take_counts()
    assert counts.pop(count) == 1
    assert not any(counts.values())


def test_a_reward_that_no_longer_answers_is_told_by_name(judge_of):
    """Not after as many time-outs as there are responses, but after sixteen in a row."""
    judge = judge_of("my_rewards:trouble", time_out=0.1, workers=2)
    assert judge.judge(["hang", "a"] * 9, [""] * 18) == [0.0, 0.5] * 9
    started = time.monotonic()
    message = r"reward 'my_rewards:trouble' has not answered 16 responses in a row within 0\.1 s"
    with pytest.raises(RewardError, match=message):
        judge.judge(["hang"] * 500, [""] * 500)
    assert time.monotonic() - started < 40


def test_what_a_reward_prints_is_no_reply(judge_of):
    judge = judge_of("my_rewards:trouble")
    assert judge.judge(["print", "b"], ["", ""]) == [0.5, 0.5]
    assert none_counted(judge)


def test_a_worker_that_died_unasked_is_replaced(judge_of):
    judge = judge_of("my_rewards:length")
    judge.judge(["a"], [""])
    worker = judge._idle.get()
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    judge._idle.put(worker)
    assert judge.judge(["ab", "abc"], ["", ""]) == [2.0, 3.0]
    assert judge.take_counts()["reward_crashes"] == 1


def test_workers_killed_in_the_middle_cost_what_they_were_judging(judge_of):
    judge = judge_of("my_rewards:slow", workers=2)
    judge.judge(["a", "b"], ["", ""])
    workers = [judge._idle.get() for _ in range(2)]
    for worker in workers:
        judge._idle.put(worker)

    def strike():
        for worker in workers:
            os.kill(worker._process.pid, signal.SIGKILL)

    timer = threading.Timer(0.5, strike)
    timer.start()
    verdicts = judge.judge(["a"] * 12, [""] * 12)
    timer.join()
    assert verdicts.count(0.0) == 2 and verdicts.count(1.0) == 10
    assert judge.take_counts()["reward_crashes"] == 2


def test_a_worker_that_always_dies_as_it_starts_is_an_error_and_no_loop(judge_of, tmp_path):
    (tmp_path / "dies.py").write_text("import os; os._exit(3)")
    judge = judge_of("dies:score", workers=2)
    with pytest.raises(RewardError, match=r"did not start in 120 s, or died: dies:score"):
        judge.judge(["a"] * 500, [""] * 500)


def test_an_exception_is_counted_and_shown_once(judge_of, caplog):
    # A dependency of vLLM's server, if imported earlier in this process, quiets the root logger.
    caplog.set_level(logging.WARNING, logger=judging.LOG.name)
    judge = judge_of("my_rewards:raises")
    for _ in range(2):
        assert judge.judge(["bad", "good", "bad"], [""] * 3) == [0.0, 1.0, 0.0]
        assert judge.take_counts()["reward_errors"] == 2
    [record] = caplog.records
    assert "reward 'my_rewards:raises' failed" in record.getMessage()
    assert "a bug of the user's" in record.getMessage()


def test_a_reward_that_fails_everywhere_stops_the_run(judge_of):
    judge = judge_of("my_rewards:raises")
    with pytest.raises(RewardError, match=r"'my_rewards:raises' failed for every(.|\n)*KeyError"):
        judge.judge(["bad", "bad"], ["", ""])


@pytest.mark.parametrize(
    ("kind", "shown"), [("nan", "nan"), ("inf", "inf"), ("list", r"\[1.0, 2.0\]"), ("text", "'1'")]
)
def test_only_finite_numbers_are_rewards(judge_of, kind, shown):
    judge = judge_of("my_rewards:returns")
    with pytest.raises(ValueError, match=f"'my_rewards:returns' returned {shown}: must be a"):
        judge.judge([kind], [""])


def test_as_many_answers_as_responses(judge_of):
    with pytest.raises(ValueError, match="2 responses but 1 answers"):
        judge_of("exact").judge(["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:score", "No module named 'no_such_module'"),
        ("my_rewards:scores", "my_rewards has no function 'scores'"),
        ({"name": "my_rewards:length", "factor": 2}, "unexpected keyword argument 'factor'"),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_an_error(judge_of, name, message):
    with pytest.raises(RewardError, match=f"rewards cannot be loaded:(.|\n)*{message}"):
        judge_of(name).judge(["a"], [""])


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ("nothing", "reward 'nothing': unknown; known: exact, after_semicolon, last_number"),
        ({"name": "regex"}, "reward 'regex': missing a required"),
        ({"name": "regex", "pattern": "("}, "pattern '\\(': missing"),
        ({"name": "exact", "weight": "2"}, "reward 'exact': weight='2' must be a number"),
        ({"name": "exact", "weight": float("nan")}, "weight=nan must be finite"),
        ({"name": "exact", "case": 1}, "reward 'exact': got an unexpected keyword"),
        ({"weight": 1}, "needs a name"),
        ([], "give a name, a table, or a list"),
        (3, "reward=3: give a name"),
    ],
)
def test_bad_rewards_are_named_before_anything_runs(rewards, message):
    with pytest.raises(ValueError, match=message):
        read_rewards(rewards)


def test_a_pattern_that_blows_up_is_killed(judge_of):
    judge = judge_of({"name": "regex", "pattern": "(a+)+", "max_length": 50}, time_out=0.5)
    verdicts = judge.judge(["aaa", "a" * 40 + "!", "a" * 51, "aaaa"], [""] * 4)
    assert verdicts == [1.0, 0.0, 0.0, 1.0]
    assert judge.take_counts()["reward_timeouts"] == 1


def test_cheap_rewards_start_no_process(judge_of, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    judge = judge_of(["exact", {"name": "last_number", "weight": 0.5}])
    assert judge.judge(["7", "is 7"], ["7", "7"]) == [1.5, 0.5]


def test_workers_start_when_first_needed_and_end_when_closed():
    judge = Judge([Weighted(name="regex", options={"pattern": "a"})], workers=2)
    assert judge.judge(["a"], [""]) == [1.0]
    workers = [judge._idle.get() for _ in range(2)]
    assert workers.count(None) == 1
    for worker in workers:
        judge._idle.put(worker)
    [started] = [worker for worker in workers if worker]
    judge.close()
    with pytest.raises(ProcessLookupError):
        os.kill(started._process.pid, 0)


def test_a_hang_takes_no_longer_than_its_time_out(judge_of):
    judge = judge_of("my_rewards:trouble", time_out=0.5)
    judge.judge(["a"], [""])
    started = time.monotonic()
    judge.judge(["hang"], [""])
    assert 0.5 <= time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("1/2", r"so \boxed{0.5}"),
        ("1/2", "the answer is 2/4."),
        (r"$\frac{1}{2}$", "0.5"),
        (r"50\%", r"\boxed{50\%}"),
        (r"\$12.50", "that is 12.50"),
        ("5", r"\boxed{5\text{ cm}}"),
        (r"\sin(x)+e^{2x}", r"$e^{2x}+\sin x$"),
        ("x^2+2x+1", "$(x+1)^2$"),
        (r"(-\infty,3)", r"$(-\infty, 3)$"),
        ("10!", "3628800"),
        (r"\text{A}", r"\boxed{\text{A}}"),
    ],
)
def test_math_verify_sees_what_is_equal(answer, response):
    assert math_verify(response, answer) == 1
    assert math_verify(r"\boxed{7777}", answer) == 0
    assert math_verify("no mathematics", answer) == 0
    with guarded():
        math_verify(response, answer)


def test_math_verify_refuses_an_answer_that_is_no_mathematics():
    with pytest.raises(ValueError, match="answer '': math_verify needs LaTeX"):
        math_verify("1", "")
