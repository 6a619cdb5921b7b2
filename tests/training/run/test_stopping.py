"""Runs that are stopped, started twice, or out of disk: told by name, and gone on with later."""

import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rlvr_decode.training.config import Checkpoint, Optim, Rollout, load
from rlvr_decode.training.run.disk import SaveError
from rlvr_decode.training.run.interrupt import EXIT_CODE, Stopped
from rlvr_decode.training.run.lock import held
from rlvr_decode.training.run.metrics import MetricsLog
from rlvr_decode.training.tasks.addition import Addition
from rlvr_decode.training.tasks.task import Prompt
from rlvr_decode.training.trainer import run

RECIPE = """
name = "stopped"
base = "{base}"
threads = 1
[task]
name = "add3"
[rollout]
prompts = 2
group = 2
max_new_tokens = 4
[optim]
steps = 100_000
[checkpoint]
every = 1000
[log]
curves = false
samples = 0
"""


def test_a_signal_stops_the_command_with_a_status_of_its_own(micro_base, tmp_path):
    recipe, directory = tmp_path / "stopped.toml", tmp_path / "stopped"
    recipe.write_text(RECIPE.format(base=micro_base))
    process = subprocess.Popen(
        [sys.executable, "-m", "rlvr_decode", "train", str(recipe), f"out={tmp_path}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = MetricsLog(directory / "metrics.jsonl")
    while len(metrics.read()) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    with pytest.raises(ValueError, match=rf"process {process.pid} on .* is at work here; wait"):
        run(load(recipe, [f"out={tmp_path}"]), Addition())

    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE == 75
    last = metrics.read()[-1]["step"]
    assert f"stopped on request after step {last}; the same command goes on from there" in message
    assert [path.name for path in (directory / "checkpoints").iterdir()] == [f"step-{last:06d}"]


def test_the_lock_of_a_process_that_was_killed_locks_nothing(tmp_path):
    code = (
        "import pathlib, time\n"
        "from rlvr_decode.training.run.lock import held\n"
        f"with held(pathlib.Path({str(tmp_path)!r})):\n"
        "    print('mine', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    with pytest.raises(ValueError, match=f"process {process.pid} on"), held(tmp_path):
        pass
    process.kill()
    process.wait()
    assert str(process.pid) in (tmp_path / "lock").read_text()
    with held(tmp_path):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


class Events:
    """Reward: the share of digits; and something happens when a step asks for its prompts."""

    def __init__(self, **events):
        self.events = events

    def prompt(self, index, *, seed, split):
        self.events.pop(f"step_{index // 6 + 1}", lambda: None)()
        return Prompt(text="say " * (1 + index % 3), answer="")

    def reward(self, prompt, response):
        return sum(character.isdigit() for character in response) / max(len(response), 1)


@pytest.fixture
def config(micro):
    return micro(
        optim=Optim(steps=4, lr=1e-2, warmup=0),
        rollout=Rollout(prompts=6, group=4, max_new_tokens=6),
        checkpoint=Checkpoint(every=1, keep=1),
        threads=1,
    )


def result_of(pair):
    lines = MetricsLog(pair.parent / "metrics.jsonl").read()
    samples = (pair.parent / "samples.jsonl").read_text()
    weights = (pair.parent / "rlvr" / "model.safetensors").read_bytes()
    return [{**line, "tokens_per_second": 0} for line in lines], samples, weights


@pytest.fixture
def whole(config, tmp_path):
    """What the run makes when nothing happens to it."""
    return result_of(run(replace(config, out=str(tmp_path / "whole")), Events()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_to_the_same_bits(config, whole, number):
    config = replace(config, checkpoint=Checkpoint(every=1000))
    before = signal.getsignal(number)  # a shell ignores SIGINT for what runs in its background
    stop = Events(step_2=lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match="stopped on request after step 2; the same command goes on"):
        run(config, stop)
    assert signal.getsignal(number) == before
    assert result_of(run(config, Events())) == whole


def test_a_run_is_stopped_while_it_pretrains(tmp_path):
    config = load("tiny", [f"out={tmp_path}", "pretrain.steps=9", "pretrain.batch=2"])
    task = Addition()
    plain, calls = task.demonstration, []

    def demonstration(prompt, rng):
        calls.append(prompt)
        if len(calls) == 5:  # in the third step
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(prompt, rng)

    task.demonstration = demonstration
    with pytest.raises(Stopped, match="after step 3 of pretraining"):
        run(config, task)
    checkpoints = tmp_path / "tiny" / "pretrain" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-000003"]


def test_the_second_signal_is_not_caught():
    code = (
        "import os, signal, time\n"
        "from rlvr_decode.training.run.interrupt import stop_on_signals\n"
        "with stop_on_signals() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    assert stop.requested\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGTERM
    assert b"once more ends the run at once" in done.stderr


def fill_disk():
    """From now on no file may grow as large as a checkpoint."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))


def test_a_checkpoint_that_does_not_fit_costs_nothing_else(config, whole):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    directory = Path(config.out) / config.name
    try:
        with pytest.raises(SaveError, match=r"step-000003: could not be .*large.* checkpoint is"):
            run(config, Events(step_3=lambda: fill_disk()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step-000002"]
    assert result_of(run(config, Events())) == whole


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_lines_that_do_not_fit_are_told_by_name(config, whole, name):
    file = Path(config.out) / config.name / name

    def fill():
        file.unlink()
        file.symlink_to("/dev/full")

    kept = []
    with pytest.raises(SaveError, match=rf"{name}: could not be written: .* No space left"):
        run(config, Events(step_3=lambda: (kept.append(file.read_text()), fill())))
    file.unlink()
    file.write_text(kept[0])
    assert result_of(run(config, Events())) == whole
