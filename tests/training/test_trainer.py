"""The loop: it learns, its gradient is the objective's, and it survives being killed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlvr_decode import Extrapolation
from rlvr_decode.pair import Pair
from rlvr_decode.training import setup
from rlvr_decode.training.cli import main
from rlvr_decode.training.config import Checkpoint, Evaluation, Log, Objective, Optim, load
from rlvr_decode.training.objectives import OBJECTIVES, LossOutputs
from rlvr_decode.training.policy.logprobs import response_logprobs
from rlvr_decode.training.step import Trainer
from rlvr_decode.training.tasks.data import make_task
from rlvr_decode.training.trainer import make_objective
from rlvr_decode.training.trainer import train_recipe as train

TIMINGS = ("tokens_per_second",)


def metrics_of(pair):
    lines = [json.loads(line) for line in (pair.parent / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def weights_of(directory):
    return load_file(Path(directory) / "model.safetensors")


def test_three_steps_raise_the_reward_and_make_a_pair(micro, micro_base):
    config = micro(defaults=Extrapolation(strength=0.5))
    path = train(config)
    lines = metrics_of(path)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[3]["reward"] > 2 * lines[1]["reward"]
    assert lines[1]["kl_ref"] < 1e-6 < lines[2]["kl_ref"] < lines[3]["kl_ref"]
    assert all(line["rollout_gap_max"] < 1e-5 for line in lines[1:])

    pair = Pair.open(path)
    assert pair.defaults == Extrapolation(strength=0.5)
    assert (pair.provenance["objective"], pair.provenance["steps"]) == ("grpo", 3)
    base, rlvr = weights_of(pair.base.fetch()), weights_of(pair.rlvr.fetch())
    assert not torch.equal(base["model.embed_tokens.weight"], rlvr["model.embed_tokens.weight"])
    assert (path.parent / "rlvr" / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_learning_rate_of_zero_leaves_everything_unchanged(micro, micro_base):
    config = micro()
    path = train(replace(config, optim=replace(config.optim, lr=0.0, weight_decay=0.1)))
    base, rlvr = weights_of(micro_base), weights_of(path.parent / "rlvr")
    assert base.keys() == rlvr.keys()
    assert all(torch.equal(base[name], rlvr[name]) for name in base)
    for line in metrics_of(path)[1:]:
        assert line["kl_ref"] < 1e-10 and line["kl_old"] < 1e-10
        assert abs(line["ratio_max"] - 1) < 1e-5


def make_trainer(config):
    return Trainer(config, make_task(config.task.name, {}), make_objective(config), config.base)


def one_update(config, prompts_step=1):
    """The policy's weights before and after one step of plain gradient descent with rate 1."""
    config = replace(config, optim=replace(config.optim, lr=1.0, max_grad_norm=1e9))
    trainer = make_trainer(config)
    trainer.optimizer = torch.optim.SGD(trainer.policy.parameters(), lr=1.0)
    before = [p.detach().clone() for p in trainer.policy.parameters()]
    metrics = trainer.step(prompts_step)
    gradient = [
        old - new.detach() for old, new in zip(before, trainer.policy.parameters(), strict=True)
    ]
    return trainer, before, gradient, metrics


def test_the_gradient_is_that_of_the_policy_gradient_theorem(micro):
    """At the sampling policy, GRPO's gradient is −Σ A_i ∇ log π(y_i) / tokens."""
    config = micro(objective=Objective(options={"aggregation": "token_mean", "eps": 1e-4}))
    trainer, before, gradient, metrics = one_update(config)
    with torch.no_grad():
        for parameter, old in zip(trainer.policy.parameters(), before, strict=True):
            parameter.copy_(old)
    prompts = trainer.prompts(1)
    rollouts = trainer.sample(prompts, 1)
    rewards = trainer.judge(prompts, rollouts, config.rollout.group)
    groups = rewards.view(-1, config.rollout.group)
    advantages = (groups - groups.mean(1, True)) / (groups.std(1, keepdim=True) + 1e-4)
    logp_BT, _ = response_logprobs(trainer.policy, rollouts, temperature=1.0)
    loss = -(advantages.flatten() * logp_BT.sum(1)).sum() / rollouts.mask_BT.sum()
    expected = torch.autograd.grad(loss, list(trainer.policy.parameters()))
    norm = torch.cat([g.flatten() for g in expected]).norm()
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for actual, wanted in zip(gradient, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-6 + 1e-4 * norm.item())


def test_the_loss_falls_along_its_gradient(micro):
    """Central differences of the objective along its own gradient give the gradient's norm²."""
    trainer, before, gradient, _ = one_update(micro())
    prompts = trainer.prompts(1)
    squared = sum(g.square().sum().item() for g in gradient)

    def restore(distance):
        with torch.no_grad():
            for parameter, old, slope in zip(
                trainer.policy.parameters(), before, gradient, strict=True
            ):
                parameter.copy_(old - distance * slope)

    restore(0.0)
    rollouts = trainer.sample(prompts, 1)
    rewards = trainer.judge(prompts, rollouts, trainer.config.rollout.group)
    batch = trainer.objective.prepare(trainer.loss_inputs(1, prompts, rollouts, rewards))
    losses = []
    for distance in (-1e-2, 1e-2):
        restore(distance)
        with torch.no_grad():
            logp_BT, _ = trainer.logprobs(rollouts)
        losses.append(trainer.objective(replace(batch, logp_BT=logp_BT)).loss.item())
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(squared, rel=0.02)


def test_micro_batches_add_up_to_the_batch(micro):
    config = micro()
    whole, parts = (
        one_update(replace(config, optim=replace(config.optim, micro_batch=size)))[2]
        for size in (192, 29)
    )
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_what_an_objective_needs_it_gets(micro):
    options = {"entropy_coef": 0.5, "kl_coef": 0.1, "correction": "token_truncate"}
    _, _, gradient, metrics = one_update(micro(objective=Objective(options=options)))
    plain = one_update(micro())[2]
    assert metrics["entropy"] > 1 and metrics["correction_mean"] == pytest.approx(1, abs=1e-5)
    assert not torch.allclose(gradient[0], plain[0])


def test_an_early_stop_ends_the_run_at_its_target(micro):
    config = micro(
        evaluation=Evaluation(every=1, prompts=20, samples=8, stop_at=0.2),
        optim=Optim(steps=20, lr=5e-2, warmup=0),
    )
    path = train(config)
    held_out = [line["held_out"] for line in metrics_of(path)]
    assert 1 < len(held_out) < 20
    assert held_out[-1] >= 0.2 > max(held_out[:-1])
    assert Pair.open(path).provenance["accuracies"]["rlvr"]["held_out"] == held_out[-1]


def test_a_finished_run_is_left_as_it_is(micro):
    config = micro()
    path = train(config)
    stamp = path.stat().st_mtime_ns
    assert train(config) == path and path.stat().st_mtime_ns == stamp


def test_a_directory_of_another_run_is_refused(micro):
    config = micro()
    train(config)
    other = replace(config, optim=replace(config.optim, lr=1e-3))
    with pytest.raises(ValueError, match=r"other settings: optim\.lr=0\.05 there, 0\.001 here"):
        train(other)


def test_what_a_run_tells_may_change(micro):
    path = train(micro())
    changed = {"log": Log(samples=9, curves=False), "checkpoint": Checkpoint(every=7)}
    assert train(micro(**changed)) == path


def test_a_policy_that_explodes_is_reported_at_once(micro):
    config = micro(optim=Optim(lr=1e30, warmup=0, steps=3))
    with pytest.raises(FloatingPointError, match="step 2: .* lower optim.lr"):
        train(config)


def test_a_policy_of_nan_is_reported_before_it_is_judged(micro):
    config = micro()
    trainer = make_trainer(config)
    next(trainer.policy.parameters()).data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="step 1: the policy gives no numbers"):
        trainer.step(1)


def test_a_gradient_that_is_not_a_number_updates_nothing(micro, monkeypatch):
    class Broken:
        needs = frozenset()
        dynamic_sampling = False
        prepare = staticmethod(OBJECTIVES["grpo"]().prepare)

        def __call__(self, inputs):
            return LossOutputs(inputs.logp_BT.sum() * float("nan"), {})

    monkeypatch.setitem(setup.OBJECTIVES, "broken", lambda: Broken())
    config = micro(objective=Objective(name="broken"))
    trainer = make_trainer(config)
    before = [p.detach().clone() for p in trainer.policy.parameters()]
    with pytest.raises(FloatingPointError, match="step 1: the gradient's norm is nan"):
        trainer.step(1)
    assert all(map(torch.equal, before, trainer.policy.parameters()))


def test_unknown_objectives_are_named(micro):
    with pytest.raises(ValueError, match=r"objective\.name='grop': unknown; known: .*grpo"):
        train(micro(objective=Objective(name="grop")))


RECIPE = """
name = "killed"
[task]
name = "add3"
[pretrain]
steps = 7
batch = 8
checkpoint_every = 2
architecture = {hidden = 32, layers = 1, heads = 2, kv_heads = 1, head = 16, intermediate = 48}
[rollout]
prompts = 4
group = 4
max_new_tokens = 8
[optim]
steps = 6
lr = 1e-3
[evaluation]
every = 2
prompts = 4
[checkpoint]
every = 2
"""

# Runs a recipe, and dies by SIGKILL at the n-th call of one function.
KILLED = """
import os, signal, sys
from rlvr_decode.training.run import checkpoint
from rlvr_decode.training.run import metrics
from rlvr_decode.training.cli import main

recipe, out, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
owner, name = {"write": (metrics.MetricsLog, "write"), "rename": (os, "rename")}[sys.argv[4]]
original = getattr(owner, name)

def deadly(*arguments):
    global calls
    calls -= 1
    if calls == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

setattr(owner, name, deadly)
main([recipe, f"out={out}"])
"""


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    recipe = tmp_path / "killed.toml"
    recipe.write_text(RECIPE)
    smooth, rough = tmp_path / "smooth", tmp_path / "rough"
    expected = train(load(recipe, [f"out={smooth}"]))

    # In pretraining after 4 steps; then past it, while the checkpoint of step 4 is written; then,
    # two checkpoints later, while what has been trained is.
    for calls, name in ((5, "write"), (4, "rename"), (3, "rename")):
        command = [sys.executable, "-c", KILLED, str(recipe), str(rough), str(calls), name]
        killed = subprocess.run(command, env=os.environ, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    half = rough / "killed"
    assert (half / "checkpoints" / "step-000006").is_dir()
    assert (half / "rlvr.tmp").is_dir() and not (half / "rlvr").exists()
    assert not (half / "pair.json").exists()

    resumed = train(load(recipe, [f"out={rough}"]))
    for name in ("base", "rlvr"):
        assert (resumed.parent / name / "model.safetensors").read_bytes() == (
            expected.parent / name / "model.safetensors"
        ).read_bytes()
    assert metrics_of(resumed) == metrics_of(expected)
    assert len(metrics_of(resumed)) == 7


def test_the_command_trains_installs_and_explains(tmp_path, capsys):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE)
    installed = tmp_path / "installed"
    options = [
        f"out={tmp_path}",
        "optim.steps=1",
        "evaluation.every=0",
        "--install",
        str(installed),
    ]
    assert main([str(recipe), *options]) == 0
    assert capsys.readouterr().out.strip() == str(installed / "pair.json")
    assert {path.name for path in installed.iterdir()} == {"pair.json", "base", "rlvr"}
    assert Pair.open(installed, verify=True).name == "killed"

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    assert main([str(recipe), *options[:-1], str(precious)]) == 2
    assert "precious: holds more than a pair" in capsys.readouterr().err
    assert (precious / "thesis.tex").exists()

    assert main([str(recipe), "optim.lrr=1"]) == 2
    assert "optim: unknown lrr; known: steps, lr" in capsys.readouterr().err


def test_checkpoints_are_kept_as_asked(micro):
    path = train(micro(checkpoint=Checkpoint(every=1, keep=1)))
    assert [p.name for p in (path.parent / "checkpoints").iterdir()] == ["step-000003"]
