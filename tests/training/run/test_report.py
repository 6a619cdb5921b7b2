"""What a run tells: samples, a table of them, curves, and the trackers that a recipe names."""

import json
import struct
import sys
import types
from dataclasses import replace

import pytest

from rlvr_decode.training.config import Evaluation, Log, Rollout
from rlvr_decode.training.run.curves import chosen, draw_curves
from rlvr_decode.training.run.samples import Sample, table
from rlvr_decode.training.trainer import train_recipe


@pytest.fixture
def config(micro):
    return micro(
        rollout=Rollout(prompts=3, group=4, max_new_tokens=6),
        evaluation=Evaluation(every=2, prompts=6),
        kl_to_base=True,
    )


def png_size(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


def test_a_run_leaves_samples_and_curves(config, capsys):
    path = train_recipe(replace(config, log=Log(samples=2, show_every=2)))
    lines = [json.loads(line) for line in (path.parent / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 1, 2, 2, 3, 3]
    for line in lines:
        digits = sum(character.isdigit() for character in line["response"])
        assert line["reward"] == pytest.approx(digits / max(len(line["response"]), 1))
    assert [line["prompt"] for line in lines[:2]] == ["say ", "say say "]
    shown = capsys.readouterr().err
    assert shown.count("reward  prompt") == 1 and "step 2\nreward  prompt" in shown
    assert "reward=" in shown and "kl=" in shown and "tok/s=" in shown
    width, height = png_size(path.parent / "curves.png")
    assert width == 5 * 480 and height == 360


def test_panels_are_those_there_are_numbers_of():
    lines = [
        {"step": 0, "held_out": 0.1, "pass_at_8": 0.4},
        {"step": 1, "reward": 0.2, "pass_at_8_gap": 0.0, "lr": 1.0},
    ]
    assert chosen(lines) == {"reward": ["reward", "held_out"], "pass@k": ["pass_at_8"]}


def test_curves_of_one_panel_are_drawn(tmp_path):
    draw_curves([{"step": 0, "entropy": 1.0}, {"step": 1, "entropy": 0.5}], tmp_path / "one.png")
    assert png_size(tmp_path / "one.png") == (480, 360)


def test_a_table_keeps_the_ends_of_long_texts_and_one_line_each():
    def sample(prompt, response, reward):
        return Sample(
            prompt=prompt, answer="", response=response, reward=reward, tokens=1, finished=True
        )

    shown = table([sample("1+1=?\n", "x" * 50 + " so 2", 1.0), sample("a\nb", "", 0.25)], width=40)
    assert shown.splitlines() == [
        "reward  prompt          response",
        "     1  1+1=?           …xxxxxxxx so 2",
        "  0.25  a b             ",
    ]


def test_tensorboard_has_the_numbers_of_every_step(config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = train_recipe(replace(config, log=Log(to=["tensorboard"], curves=False)))
    found = EventAccumulator(str(path.parent / "tensorboard"))
    found.Reload()
    lines = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    told = [(event.step, event.value) for event in found.Scalars("reward")]
    assert told == [(line["step"], pytest.approx(line["reward"])) for line in lines[1:]]
    assert [event.step for event in found.Scalars("held_out")] == [0, 2, 3]


class Recorder(types.ModuleType):
    """Stands for trackio, and for wandb, whose run is an object of its own."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def init(self, **settings):
        self.calls.append(("init", settings))
        return self

    def log(self, metrics, *, step):
        self.calls.append(("log", step, metrics))

    def finish(self):
        self.calls.append(("finish",))


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_other_trackers_are_told_the_same(config, monkeypatch, name):
    module = Recorder(name)
    monkeypatch.setitem(sys.modules, name, module)
    path = train_recipe(replace(config, log=Log(to=[name], curves=False)))
    lines = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    start, *told, end = module.calls
    assert start[1]["project"] == "rlvr-decode" and start[1]["name"] == "micro"
    assert start[1]["config"]["optim"]["steps"] == 3
    assert [("log", line.pop("step"), line) for line in lines] == told
    assert end == ("finish",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandbb", r"log\.to: 'wandbb' is unknown; known: tensorboard, trackio, wandb"),
        ("trackio", r"log\.to: 'trackio' needs the package trackio, which does not import"),
    ],
)
def test_trackers_that_cannot_be_told_are_named_at_once(config, monkeypatch, name, message):
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    with pytest.raises(ValueError, match=message):
        train_recipe(replace(config, log=Log(to=[name], curves=False)))
