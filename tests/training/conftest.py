"""A model small enough to train in a test, and a task it can learn in three steps."""

from dataclasses import replace

import pytest

from rlvr_decode.training.config import Architecture, Evaluation, Log, Optim, Rollout, Task, Train
from rlvr_decode.training.policy.model import new_model, save_model
from rlvr_decode.training.tasks import data
from rlvr_decode.training.tasks.task import Prompt

MICRO = Architecture(hidden=32, layers=2, heads=2, kv_heads=1, head=16, intermediate=48)


class Digits:
    """Reward: the share of digits in the response. A random model writes one in ten."""

    def prompt(self, index, *, seed, split):
        return Prompt(text="say " * (1 + index % 3), answer="")

    def reward(self, prompt, response):
        return sum(character.isdigit() for character in response) / max(len(response), 1)


@pytest.fixture(scope="session")
def micro_base(tmp_path_factory):
    """A random micro model on disk."""
    directory = tmp_path_factory.mktemp("micro") / "base"
    model, tokenizer = new_model(MICRO, seed=3)
    save_model(model, tokenizer, directory)
    return directory


@pytest.fixture
def micro(micro_base, tmp_path, monkeypatch):
    """Make a run's settings on the micro model and the task `digits`, with these changes."""
    monkeypatch.setitem(data.TASKS, "digits", Digits)
    settings = Train(
        name="micro",
        task=Task(name="digits"),
        base=str(micro_base),
        out=str(tmp_path / "runs"),
        rollout=Rollout(prompts=6, group=32, max_new_tokens=6),
        optim=Optim(steps=3, lr=5e-2, warmup=0, micro_batch=100),
        evaluation=Evaluation(),
        log=Log(curves=False),
    )
    return lambda **changes: replace(settings, **changes)
