"""Every preset trains a model through the whole loop, and its reward rises."""

from __future__ import annotations

import pytest
import torch

from rlvr_decode.training.config import Objective, Optim, Rollout, Task
from rlvr_decode.training.objectives import OBJECTIVES
from rlvr_decode.training.policy.model import open_model
from rlvr_decode.training.tasks import data
from rlvr_decode.training.tasks.task import Prompt
from rlvr_decode.training.trainer import train_recipe

TEXT = "say "


class Letters:
    """Reward: whether a response starts with a letter, as half of a random model's do."""

    def prompt(self, index, *, seed, split):
        return Prompt(text=TEXT, answer="")

    def reward(self, prompt, response):
        return float(response[:1].isalpha())


@pytest.fixture
def train(micro, monkeypatch):
    """Four batches with one preset, two optimiser steps each; the trained model's directory."""
    monkeypatch.setitem(data.TASKS, "letters", Letters)

    def run(name):
        config = micro(
            task=Task(name="letters"),
            rollout=Rollout(prompts=4, group=16, max_new_tokens=2),
            objective=Objective(name=name),
            rank={"window": 2, "stride": 1} if name == "mrpo" else None,
            optim=Optim(steps=4, lr=1e-2, warmup=0, micro_batch=64, mini_batch=2),
            kl_to_base=False,
        )
        return train_recipe(config).parent / "rlvr"

    return run


@torch.no_grad()
def chance_of_right(directory):
    """The chance that a response is right: exact, no samples."""
    model, tokenizer = open_model(directory)
    chance_V = model(input_ids=torch.tensor([tokenizer.encode(TEXT)])).logits[0, -1].softmax(-1)
    right = [token for token in tokenizer.get_vocab() if token.isalpha()]
    return chance_V[tokenizer.convert_tokens_to_ids(right)].sum().item()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_reward_rises(name, train, micro_base):
    assert chance_of_right(train(name)) > chance_of_right(micro_base) + 0.1
