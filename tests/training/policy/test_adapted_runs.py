"""Runs that train an adapter: killed and resumed to the same bits, ending in a pair that opens."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from rlvr_decode.lora import read_factors
from rlvr_decode.pair import Pair
from rlvr_decode.training.config import Adapter, Checkpoint, Optim, load
from rlvr_decode.training.policy.logprobs import response_logprobs
from rlvr_decode.training.policy.model import open_model
from rlvr_decode.training.run.metrics import MetricsLog
from rlvr_decode.training.step import Trainer
from rlvr_decode.training.tasks.data import make_task
from rlvr_decode.training.trainer import make_objective, train_recipe

GEORA = Adapter(kind="geora", options={"rank": 4, "alpha": 8.0, "targets": ["q_proj", "down_proj"]})


@pytest.fixture
def adapted(micro):
    """Settings of a run of three steps with an adapter, checkpointed at each."""
    return lambda **changes: micro(
        **{
            "adapter": GEORA,
            "optim": Optim(steps=3, lr=2e-2, warmup=0, micro_batch=100),
            "checkpoint": Checkpoint(every=1, keep=0),
            **changes,
        }
    )


def make_trainer(config):
    task = make_task(config.task.name, config.task.options)
    return Trainer(config, task, make_objective(config), config.base)


def steps_of(pair):
    lines = MetricsLog(pair.parent / "metrics.jsonl").read()
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


@pytest.mark.parametrize("kind", ["geora", "lora"])
def test_the_pair_of_a_run_is_the_trainers_policy(adapted, micro_base, kind):
    config = adapted(adapter=Adapter(kind=kind, options={"rank": 4}))
    path = train_recipe(config)
    lines = steps_of(path)
    assert lines[1]["kl_ref"] < 1e-10 and lines[2]["kl_ref"] > 1e-4

    pair = Pair.open(path, verify=True)
    assert pair.rlvr.kind == "adapter"
    assert {file.name for file in pair.rlvr.fetch().iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }

    assert (path.parent / "rlvr" / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644

    trainer = make_trainer(config)  # as the finished run left it
    checkpoint = path.parent / "checkpoints" / "step-000003"
    weights = load_file(checkpoint / "weights.safetensors")
    trainer.policy.load_state_dict(weights, strict=False)
    rollouts = trainer.sample(trainer.prompts(1), 1)
    merged, _ = open_model(pair.base.fetch())
    base_BT = response_logprobs(merged, rollouts, temperature=1.0)[0]
    with torch.no_grad():
        for name, (left_MR, right_RN) in read_factors(pair.rlvr.fetch()).items():
            merged.get_submodule(name).weight += left_MR @ right_RN
    merged_BT = response_logprobs(merged, rollouts, temperature=1.0)[0]
    trained_BT = trainer.logprobs(rollouts)[0]
    assert (trained_BT - base_BT).abs().max() > 1e-2
    torch.testing.assert_close(merged_BT, trained_BT, rtol=0, atol=1e-5)


def test_the_pairs_adapter_may_be_in_16_bits(adapted, micro_base):
    path = train_recipe(adapted(adapter=replace(GEORA, dtype="bfloat16"), name="half"))
    whole = train_recipe(adapted())
    half = read_factors(Pair.open(path).rlvr.fetch())
    stored = load_file(path.parent / "rlvr" / "adapter_model.safetensors").values()
    assert {tensor.dtype for tensor in stored} == {torch.bfloat16}
    for name, (left_MR, right_RN) in read_factors(Pair.open(whole).rlvr.fetch()).items():
        exact_MN = left_MR @ right_RN
        rounded_MN = half[name][0].float() @ half[name][1].float()
        assert (rounded_MN - exact_MN).norm() < 4e-3 * exact_MN.norm() != 0
    with pytest.raises(ValueError, match=r"adapter\.dtype='float16'"):
        replace(GEORA, dtype="float16")


def test_the_reference_is_the_base_itself_without_a_second_model(adapted, micro_base):
    trainer = make_trainer(adapted())
    trainer.step(1)
    assert trainer.policies.reference is None
    rollouts = trainer.sample(trainer.prompts(2), 2)
    base, _ = open_model(micro_base)
    expected_BT = response_logprobs(base, rollouts, temperature=1.0)[0]
    assert torch.equal(trainer.policies.reference_logprobs(rollouts), expected_BT)
    assert not torch.equal(trainer.logprobs(rollouts)[0], expected_BT)


def test_a_run_cut_short_resumes_to_the_same_bits(adapted, tmp_path):
    whole = train_recipe(adapted(out=str(tmp_path / "whole")))
    cut = train_recipe(adapted(out=str(tmp_path / "cut")))
    cut.unlink()
    shutil.rmtree(cut.parent / "rlvr")
    for step in (2, 3):
        shutil.rmtree(cut.parent / "checkpoints" / f"step-{step:06d}")
    cut = train_recipe(adapted(out=str(tmp_path / "cut")))
    once, twice = (load_file(p.parent / "rlvr/adapter_model.safetensors") for p in (whole, cut))
    assert once.keys() == twice.keys() and all(torch.equal(once[k], twice[k]) for k in once)
    assert steps_of(cut) == steps_of(whole)


def test_a_base_that_was_written_to_is_no_longer_the_pairs(adapted, tmp_path):
    trainer = make_trainer(adapted())
    with torch.no_grad():
        trainer.policy.get_submodule("model.layers.0.self_attn.q_proj.base").weight[0, 0] += 1
    with pytest.raises(RuntimeError, match=r"base model has changed in .*0\.self_attn\.q_proj"):
        trainer.save(tmp_path / "rlvr")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Adapter(kind="dora"), r"adapter\.kind='dora': unknown; known: lora, pissa"),
        (Adapter(kind="geora", options={"ro": 1}), r"adapter\.options: unknown ro; known: rank"),
        (Adapter(kind="lora", options={"targets": [1]}), "targets=1: must be str, not int"),
    ],
)
def test_wrong_settings_are_named(adapted, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(adapted(adapter=settings))


def test_the_bundled_recipe_learns_the_bundled_task(tmp_path):
    """From a base that is right in one of five: five steps of a third of the recipe's batch."""
    base = Pair.open("tiny").base.fetch()
    overrides = ["optim.steps=5", "rollout.prompts=16", "evaluation.every=0"]
    path = train_recipe(load("tiny-geora", [f"base={base}", f"out={tmp_path}", *overrides]))
    lines = steps_of(path)
    assert lines[5]["reward"] > lines[1]["reward"] + 0.1
    assert Pair.open(path).rlvr.kind == "adapter"
