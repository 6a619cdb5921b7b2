"""Rollouts by a real vLLM engine: it follows the policy, and says so when it does not answer."""

import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from rlvr_decode.testing import make_checkpoints
from rlvr_decode.training.config import Adapter, Log, Objective, Optim, Rollout, Task, Train
from rlvr_decode.training.rollout.rollout import RolloutError
from rlvr_decode.training.rollout.vllm import EngineThread
from rlvr_decode.training.setup import make_objective
from rlvr_decode.training.step import Trainer
from rlvr_decode.training.tasks.task import Prompt

SMALL = {"enforce_eager": True, "max_model_len": 256, "max_num_seqs": 32, "block_size": 32}


class Vowels:
    """Reward: the share of vowels in the response."""

    def prompt(self, index, *, seed, split):
        return Prompt(text="say " * (1 + index % 3), answer="")

    def reward(self, prompt, response):
        return sum(character in "aeiou" for character in response) / max(len(response), 1)


@pytest.fixture(scope="module", params=["adapter", "weights"])
def trainer(request, tmp_path_factory):
    """A trainer whose engine has been started; the runs of this module go on from each other."""
    place = tmp_path_factory.mktemp(request.param)
    base, _ = make_checkpoints(place)
    geora = Adapter(kind="geora", options={"rank": 4, "alpha": 8.0})
    config = Train(
        name="vllm",
        base=str(base),
        task=Task(name="vowels"),
        out=str(place),
        adapter=geora if request.param == "adapter" else None,
        objective=Objective(options={"correction": "token_truncate"}),
        rollout=Rollout(
            prompts=3, group=4, max_new_tokens=12, temperature=0.8, engine="vllm", vllm=SMALL
        ),
        optim=Optim(lr=0.0, warmup=0),
        log=Log(curves=False),
    )
    trainer = Trainer(config, Vowels(), make_objective(config), base)
    yield trainer
    trainer.engine.close()


def test_with_a_rate_of_zero_nothing_moves(trainer):
    for step in (1, 2):
        metrics = trainer.step(step)
        assert metrics["rollout_gap_max"] < 1e-4 and metrics["rollout_gap_mean"] < 1e-5
        assert metrics["rollout_kl"] < 1e-8 and abs(metrics["correction_mean"] - 1) < 1e-4
        assert metrics["kl_ref"] < 1e-10 and metrics["kl_old"] < 1e-10
        assert abs(metrics["ratio_max"] - 1) < 1e-5


def test_the_engine_follows_the_policy(trainer):
    """After steps that change the policy by far more, the two still agree on what was sampled."""
    still = trainer.config
    rate = 3e-2 if trainer.policies.adapter else 3e-3
    trainer.config = replace(still, optim=replace(still.optim, lr=rate))
    metrics = [trainer.step(step) for step in (3, 4, 5)]
    trainer.config = still
    assert metrics[2]["kl_ref"] > 1e-2
    assert all(each["rollout_gap_max"] < 1e-4 for each in metrics)


def test_the_seed_and_the_policy_decide_what_is_sampled(trainer):
    prompts = trainer.prompts(7)
    first, again, other = (trainer.sample(prompts, step) for step in (7, 7, 8))
    assert first.texts == again.texts != other.texts
    assert torch.equal(first.logp_BT, again.logp_BT)
    parts = [trainer.sample(prompts[i : i + 1], 7, first=i) for i in range(3)]
    assert [text for part in parts for text in part.texts] == first.texts


def test_what_it_returns_is_in_the_shape_of_the_others(trainer):
    rollouts = trainer.sample(trainer.prompts(9), 9)
    lengths_B = rollouts.mask_BT.sum(1)
    eos = trainer.tokenizer.eos_token_id
    for row in range(12):
        length, response = int(lengths_B[row]), rollouts.response_BT[row]
        assert rollouts.mask_BT[row, :length].all() and not rollouts.mask_BT[row, length:].any()
        assert (response[length:] == trainer.tokenizer.pad_token_id).all()
        assert bool(rollouts.finished_B[row]) == bool(response[length - 1] == eos)
        assert rollouts.finished_B[row] or length == 12
        prompt = rollouts.prompt_BP[row][rollouts.prompt_mask_BP[row]].tolist()
        assert prompt == trainer.tokenizer.encode("say " * (1 + (24 + row // 4) % 3))
    assert (rollouts.logp_BT[~rollouts.mask_BT] == 0).all()
    assert (rollouts.logp_BT[rollouts.mask_BT] < 0).all()
    with pytest.raises(ValueError, match="max_new_tokens=4000: the longest prompt leaves room"):
        trainer.engine.sample(["x"], group=1, max_new_tokens=4000, temperature=1.0, seed=0)


def test_an_engine_that_stalls_is_given_up_by_name(trainer):
    gate = threading.Event()

    def stall(module, inputs):
        gate.wait(60)

    engine, patience = trainer.engine, trainer.engine.time_out
    engine.run(lambda llm: llm.apply_model(lambda model: model.register_forward_pre_hook(stall)))
    engine.time_out = 0.5
    started = time.monotonic()
    with pytest.raises(RolloutError, match=r"has not sampled 12 responses in 0\.5 s and is given"):
        trainer.sample(trainer.prompts(1), 1)
    assert time.monotonic() - started < 5
    gate.set()
    engine.time_out = patience
    engine.run(lambda llm: None)


def test_a_thread_that_never_answers_does_not_keep_the_process():
    code = """
import time
from rlvr_decode.training.rollout.vllm import EngineThread
thread = EngineThread()
try:
    thread.do(lambda: time.sleep(600), "woken up", time_out=0.2)
finally:
    assert thread.is_stuck
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "RolloutError: the vLLM engine has not woken up in 0.2 s" in done.stderr


def test_an_engine_that_dies_is_named():
    with pytest.raises(RolloutError, match="died before it had sampled: out of luck"):
        EngineThread().do(lambda: raising(RuntimeError("out of luck")), "sampled", time_out=5)


def raising(error):
    raise error
