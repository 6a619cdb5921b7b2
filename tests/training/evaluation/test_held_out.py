"""Held-out prompts in a run: reach beside accuracy, and its gap to base, resumed or not."""

import json
import shutil
import statistics
from dataclasses import replace

import pytest

from rlvr_decode.training.config import Checkpoint, Evaluation, Task
from rlvr_decode.training.evaluation.boundary import pass_at_k
from rlvr_decode.training.tasks import data
from rlvr_decode.training.tasks.task import Prompt
from rlvr_decode.training.trainer import train_recipe

SAMPLES = 6


class Starts:
    """Right is to start with a digit; a random model does one time in ten, a trained one more."""

    def prompt(self, index, *, seed, split):
        return Prompt(text="say " * (1 + index % 3), answer="")

    def reward(self, prompt, response):
        return float(response[:1].isdigit())


@pytest.fixture
def config(micro, monkeypatch):
    monkeypatch.setitem(data.TASKS, "starts", Starts)
    return micro(
        task=Task(name="starts"),
        evaluation=Evaluation(every=1, prompts=24, samples=SAMPLES),
        checkpoint=Checkpoint(every=1, keep=0),
    )


def lines(pair):
    return [json.loads(x) for x in (pair.parent / "metrics.jsonl").read_text().splitlines()]


def test_reach_and_its_gap_to_base_are_logged(config) -> None:
    pair = train_recipe(config)
    base, *steps = lines(pair)
    state = json.loads((pair.parent / "checkpoints" / "step-000003" / "state.json").read_text())
    correct = state["base_correct"]
    assert len(correct) == 24 and max(correct) > 0
    for k in (1, SAMPLES):
        reach = statistics.fmean(pass_at_k(SAMPLES, c, k) for c in correct)
        assert base[f"pass_at_{k}"] == pytest.approx(reach)
        for line in steps:
            gap = line[f"pass_at_{k}"] - base[f"pass_at_{k}"]
            assert line[f"pass_at_{k}_gap"] == pytest.approx(gap)
            assert line[f"pass_at_{k}_gap_se"] > 0
    assert base["pass_at_1"] == pytest.approx(base["held_out"])
    assert steps[-1]["pass_at_1_gap"] > 0.1
    assert not any("gap" in name for name in base)


def test_a_run_cut_short_compares_with_the_same_base(config, tmp_path) -> None:
    runs = [replace(config, out=str(tmp_path / name)) for name in ("whole", "cut")]
    whole, cut = map(train_recipe, runs)
    cut.unlink()
    for step in (2, 3):
        shutil.rmtree(cut.parent / "checkpoints" / f"step-{step:06d}")
    train_recipe(runs[1])
    for once, twice in zip(lines(whole), lines(cut), strict=True):
        assert once | {"tokens_per_second": 0} == twice | {"tokens_per_second": 0}


def test_a_run_that_never_evaluates_says_nothing(config) -> None:
    pair = train_recipe(replace(config, evaluation=Evaluation()))
    assert not any("pass" in name for line in lines(pair) for name in line)
