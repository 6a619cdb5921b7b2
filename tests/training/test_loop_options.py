"""What a recipe can switch on in the loop: rank, stages, mini-batches, memory, dynamic sampling."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from rlvr_decode.pair import Pair
from rlvr_decode.training.config import (
    Adapter,
    Checkpoint,
    Objective,
    Optim,
    Pretrain,
    Rollout,
    Task,
)
from rlvr_decode.training.objectives import merge_metrics
from rlvr_decode.training.policy.logprobs import check_head, response_logprobs
from rlvr_decode.training.policy.model import open_model
from rlvr_decode.training.rank.mrpo import mrpo_rewards
from rlvr_decode.training.rank.ranks import RankReward, response_ranks
from rlvr_decode.training.rollout.dynamic_sampling import Judged, collect
from rlvr_decode.training.rollout.rollout import Rollouts
from rlvr_decode.training.step import Trainer
from rlvr_decode.training.tasks.data import make_task
from rlvr_decode.training.tasks.task import Prompt
from rlvr_decode.training.trainer import make_objective, train, train_recipe


def make_trainer(config):
    task = make_task(config.task.name, config.task.options)
    return Trainer(config, task, make_objective(config), config.base)


def gradient_of(config, **settings):
    """The step of one batch as plain gradient descent with rate 1 takes it."""
    optim = replace(config.optim, lr=1.0, max_grad_norm=1e9, **settings)
    trainer = make_trainer(replace(config, optim=optim))
    trainer.optimizer = torch.optim.SGD(trainer.policy.parameters(), lr=1.0)
    before = [p.detach().clone() for p in trainer.policy.parameters()]
    trainer.step(1)
    return [a - b.detach() for a, b in zip(before, trainer.policy.parameters(), strict=True)]


# Log-probabilities in parts


@pytest.mark.parametrize(
    ("max_logits", "kept_logits"), [(1, 0), (1500, 0), (1500, 4000), (1500, 1 << 26), (20_000, 0)]
)
def test_the_head_in_parts_gives_the_values_and_the_gradient(
    micro_base, micro, max_logits, kept_logits
):
    """With a part of one token, of some tokens, and of nearly all; computed again or kept."""
    trainer = make_trainer(micro())
    rollouts = trainer.sample(trainer.prompts(1), 1)
    assert not rollouts.mask_BT.all() and not rollouts.prompt_mask_BP.all()
    generator = torch.Generator().manual_seed(0)
    weight_BT = torch.randn(rollouts.mask_BT.shape, generator=generator)
    found = []
    for limits in ((max_logits, kept_logits), (1 << 24, 1 << 24)):
        model, _ = open_model(micro_base)
        limits = dict(zip(("max_logits", "kept_logits"), limits, strict=True))
        logp_BT, entropy_BT = response_logprobs(
            model, rollouts, temperature=0.7, entropy=True, **limits
        )
        ((logp_BT + 0.3 * entropy_BT) * weight_BT).sum().backward()
        found.append([logp_BT, entropy_BT, *(p.grad for p in model.parameters())])
    for parts, whole in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=2e-5)


def test_the_logits_never_exist_whole(micro):
    trainer = make_trainer(micro())
    rollouts = trainer.sample(trainer.prompts(1), 1)
    rows = []
    trainer.policy.lm_head.register_forward_hook(lambda _, __, out: rows.append(out.shape[:-1]))
    response_logprobs(trainer.policy, rollouts, temperature=1.0, max_logits=50 * 104)
    assert {len(shape) for shape in rows} == {1}
    assert max(n for (n,) in rows) == 50 and sum(n for (n,) in rows) == rollouts.mask_BT.sum()


def test_so_many_logits_are_kept_and_the_others_computed_again(micro):
    trainer = make_trainer(micro())
    rollouts = trainer.sample(trainer.prompts(1), 1)
    rows = []
    trainer.policy.lm_head.register_forward_hook(lambda _, __, out: rows.append(len(out)))
    limits = {"max_logits": 10 * 104, "kept_logits": 35 * 104}
    response_logprobs(trainer.policy, rollouts, temperature=1.0, **limits).logp_BT.sum().backward()
    tokens = int(rollouts.mask_BT.sum())
    assert sum(rows) == 2 * tokens - 30


def test_a_model_that_changes_its_logits_is_refused(micro_base):
    model, _ = open_model(micro_base)
    check_head(model)
    plain = model.forward

    def capped(**inputs):
        output = plain(**inputs)
        output.logits = 0.1 * torch.tanh(output.logits)
        return output

    model.forward = capped
    with pytest.raises(ValueError, match="Qwen3ForCausalLM changes its logits after Linear"):
        check_head(model)


def test_gradient_checkpointing_changes_no_gradient(micro):
    plain, again = (gradient_of(micro(), gradient_checkpointing=on) for on in (False, True))
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_bf16_computes_in_bfloat16_and_keeps_float32(micro):
    config = micro()
    trainer = make_trainer(replace(config, optim=replace(config.optim, bf16=True)))
    seen = []
    layer = trainer.policy.model.layers[0].mlp.up_proj
    layer.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    metrics = trainer.step(1)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in trainer.policy.parameters()} == {torch.float32}
    assert metrics["rollout_gap_max"] < 0.05


# Several optimiser steps per batch


@pytest.mark.parametrize("name", ["grpo", "lpo_fwd"])
def test_mini_batches_are_steps_of_their_own(micro, name):
    """Two steps with half the prompts each; the second one at the policy the first has made."""
    config = micro(objective=Objective(name=name))
    trainer = make_trainer(replace(config, optim=replace(config.optim, mini_batch=3, lr=1e-2)))
    steps = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: steps.append(step())
    metrics = trainer.step(1)
    assert len(steps) == 2
    assert metrics["kl_old"] > 1e-6  # off-policy by then; one step would leave rounding alone


@pytest.mark.parametrize("size", [192, 29])
def test_a_listwise_gradient_does_not_depend_on_micro_batches(micro, size):
    """Groups of 32 cut anywhere: credit comes from a pass over the whole groups."""
    config = micro(objective=Objective(name="lpo_fwd"))
    trainer = make_trainer(config)
    prompts, rollouts, rewards_B = trainer.draw(1)
    batch = trainer.objective.prepare(trainer.loss_inputs(1, prompts, rollouts, rewards_B))
    parts = [
        trainer.objective(replace(micro, logp_BT=trainer.logprobs(rollouts.select(micro.row_B))[0]))
        for micro in batch.split(192)
    ]
    torch.stack([part.loss for part in parts]).sum().backward()
    assert merge_metrics([part.metrics for part in parts])
    expected = [p.grad for p in trainer.policy.parameters()]
    for found, wanted in zip(gradient_of(config, micro_batch=size), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


# Dynamic sampling


def drawn(rewards, group, texts):
    """A round with these rewards, whose responses are as long as their round is late."""
    count, tokens = len(rewards), len(texts[0])
    return Judged(
        [Prompt(text=f"p{row}", answer="") for row in range(count // group)],
        Rollouts(
            prompt_BP=torch.full((count, tokens), 5),
            prompt_mask_BP=torch.ones(count, tokens, dtype=torch.bool),
            response_BT=torch.full((count, tokens), 7),
            mask_BT=torch.ones(count, tokens, dtype=torch.bool),
            logp_BT=torch.full((count, tokens), -1.0),
            finished_B=torch.ones(count, dtype=torch.bool),
            texts=texts,
            hidden_BTD=torch.full((count, tokens, 3), 2.0),
        ),
        torch.tensor(rewards),
    )


def test_groups_of_equal_rewards_are_replaced():
    rounds = [
        drawn([1.0, 1, 0, 1, 0, 0], 2, ["a"] * 6),
        drawn([0.0, 1, 1, 1, 1, 0], 2, ["bb"] * 6),
    ]
    (prompts, rollouts, rewards_B), count, share = collect(
        rounds.__getitem__, group=2, prompts=2, max_rounds=5
    )
    assert [prompt.text for prompt in prompts] == ["p1", "p0"]
    assert rewards_B.tolist() == [0, 1, 0, 1]
    assert (count, share) == (2, 0.5)
    assert rollouts.texts == ["a", "a", "bb", "bb"]
    assert rollouts.mask_BT.tolist() == [[True, False]] * 2 + [[True, True]] * 2
    assert rollouts.prompt_mask_BP.tolist() == [[False, True]] * 2 + [[True, True]] * 2
    assert rollouts.logp_BT.tolist() == [[-1, 0]] * 2 + [[-1, -1]] * 2
    assert rollouts.hidden_BTD.tolist() == [[[2] * 3, [0] * 3]] * 2 + [[[2] * 3] * 2] * 2


def test_rounds_end_and_nothing_to_learn_is_an_error():
    mixed, equal = drawn([1.0, 0, 1, 1], 2, ["a"] * 4), drawn([1.0, 1, 0, 0], 2, ["a"] * 4)
    found = collect([mixed, equal, mixed].__getitem__, group=2, prompts=9, max_rounds=3)
    assert (len(found.judged.prompts), found.rounds) == (2, 3)
    with pytest.raises(ValueError, match=r"all of 6 prompts are always or never .*\(3 rounds\)"):
        collect(lambda _: equal, group=2, prompts=9, max_rounds=3)


def test_dapo_fills_its_batch_with_fresh_prompts(micro):
    config = micro(
        objective=Objective(name="dapo"),
        rollout=Rollout(prompts=6, group=3, max_new_tokens=4, max_rounds=4),
    )
    trainer = make_trainer(config)
    (prompts, rollouts, rewards_B), rounds, share = trainer.collect(2)
    assert rounds > 1 and 0 < share < 1
    assert len(rewards_B) == len(rollouts.texts) == 3 * len(prompts) == 18
    groups = rewards_B.view(6, 3)
    assert (groups != groups[:, :1]).any(1).all()
    metrics = trainer.step(2)
    assert (metrics["sampling_rounds"], metrics["informative"]) == (rounds, share)
    numbers = [trainer.prompts(step, number) for step in (1, 2) for number in range(4)]
    asked = [trainer.task.prompt(i, seed=0, split="train") for i in range(48)]
    assert [prompt for part in numbers for prompt in part] == asked


# MRPO and the stages


class Verdicts:
    """Right where the response has a digit: one in two at first."""

    def prompt(self, index, *, seed, split):
        return Prompt(text="say " * (1 + index % 3), answer="")

    def reward(self, prompt, response):
        return float(any(character.isdigit() for character in response))


RANK = {"alpha": 0.5, "window": 4, "stride": 2}


def mrpo_trainer(micro, **changes):
    config = micro(objective=Objective(name="mrpo"), rank=RANK, **changes)
    return Trainer(config, Verdicts(), make_objective(config), config.base)


def test_mrpo_learns_from_ranks_and_reports_the_plain_reward(micro, monkeypatch):
    trainer = mrpo_trainer(micro)
    _, rollouts, rewards_B = trainer.draw(1)
    group_B = torch.arange(6).repeat_interleave(32)
    rank_B = response_ranks(trainer.policy, rollouts, RankReward(**RANK))
    lengths_B = rollouts.mask_BT.sum(1)
    shaped_B = mrpo_rewards(rewards_B >= 1, rank_B, lengths_B, group_B, alpha=0.5, window=4)
    assert 1 < shaped_B.max() <= 1.5 and 0 < rewards_B.mean() < 1

    seen = []
    prepare = type(trainer.objective).prepare
    monkeypatch.setattr(
        type(trainer.objective), "prepare", lambda self, x: (seen.append(x), prepare(self, x))[1]
    )
    metrics = trainer.step(1)
    torch.testing.assert_close(seen[0].rewards_B, shaped_B)
    assert metrics["reward"] == pytest.approx(rewards_B.mean().item())
    assert metrics["rank_mean"] == pytest.approx(rank_B.mean().item(), rel=1e-6)
    assert metrics["rank_correct"] == pytest.approx(rank_B[rewards_B > 0].mean().item(), rel=1e-6)


def test_mrpo_without_ranks_is_refused(micro):
    with pytest.raises(
        ValueError, match=r"objective mrpo reads rewards shaped by rank: give .rank"
    ):
        make_objective(micro(objective=Objective(name="mrpo")))


def test_praise_is_weighed_down_once_exploitation_ends(micro):
    """With a patience of 1 and no entropy trend to fall, the turn comes within a few steps."""
    stages = {"patience": 1, "smoothing": 1.0, "positive_weight": 0.0, "ramp": 1}
    config = micro(stages=stages, optim=Optim(steps=1, lr=0.0))
    trainer = make_trainer(config)
    weights = [trainer.step(step)["positive_weight"] for step in range(1, 9)]
    assert weights[0] == 1 and 0 in weights
    turn = weights.index(0)
    trainer = make_trainer(config)
    for step in range(1, turn + 2):
        batch = trainer.objective.prepare(trainer.loss_inputs(step, *trainer.draw(step)))
        _, rollouts, rewards_B = trainer.draw(step)
        weighed, metrics = trainer.staging.observe(
            batch, rollouts, rewards_B, answers=rollouts.texts
        )
    assert batch.advantages_BT.max() > 0 == weighed.advantages_BT.max()
    assert weighed.advantages_BT.min() == batch.advantages_BT.min()
    assert metrics["stage"] == "transition"


def test_with_everything_on_a_run_cut_short_resumes_to_the_same_bits(micro, tmp_path):
    def config(out):
        return micro(
            objective=Objective(name="dapo"),
            rollout=Rollout(prompts=6, group=8, max_new_tokens=6),
            optim=Optim(
                steps=5, lr=1e-2, warmup=0, mini_batch=2, gradient_checkpointing=True, bf16=True
            ),
            stages={"patience": 1, "smoothing": 1.0, "positive_weight": 0.1, "ramp": 3},
            checkpoint=Checkpoint(every=1, keep=0),
            out=str(tmp_path / out),
        )

    whole, cut = (train_recipe(config(out)) for out in ("whole", "cut"))
    cut.unlink()
    for step in (3, 4, 5):
        shutil.rmtree(cut.parent / "checkpoints" / f"step-{step:06d}")
    cut = train_recipe(config("cut"))
    lines = [
        [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        for path in (whole, cut)
    ]
    for once, twice in zip(*lines, strict=True):
        assert once | {"tokens_per_second": 0} == twice | {"tokens_per_second": 0}
    weights = "rlvr/model.safetensors"
    assert (cut.parent / weights).read_bytes() == (whole.parent / weights).read_bytes()
    assert lines[0][5]["stage"] in ("exploitation", "transition", "exploration")


def test_stages_of_a_listwise_objective_are_refused(micro):
    trainer = make_trainer(micro(objective=Objective(name="lpo_fwd"), stages={}))
    with pytest.raises(ValueError, match="stages: a listwise objective has no advantages"):
        trainer.step(1)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"rank": {"windw": 4}}, "rank: unknown windw; known: alpha, norm"),
        ({"stages": {"patience": 0}}, "patience=0, ramp=20: must be at least 1"),
        ({"reset": {"every": 0}}, "every=0: must be above 0"),
        ({"adapter": Adapter(kind="lora", options={"rank": 0})}, "rank=0: must be at least 1"),
    ],
)
def test_a_wrong_section_is_told_before_anything_is_pretrained(micro, tmp_path, section, message):
    config = micro(base=None, pretrain=Pretrain(), task=Task(name="add3"), **section)
    with pytest.raises(ValueError, match=message):
        train_recipe(config)
    made = sorted(file.name for file in (tmp_path / "runs" / "micro").iterdir())
    assert made == ["config.json", "lock"]


# From Python


def digits(response, answer):
    return sum(character.isdigit() for character in response) / max(len(response), 1)


ROWS = [{"prompt": "say " * n, "answer": str(n)} for n in (1, 2, 3)]
OPTIONS = {
    "rollout": {"prompts": 6, "group": 32, "max_new_tokens": 6},
    "optim": {"steps": 3, "lr": 5e-2, "warmup": 0},
}


def test_three_arguments_make_a_pair(micro_base, tmp_path):
    path = train(micro_base, digits, ROWS, out=str(tmp_path), **OPTIONS)
    lines = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    assert lines[3]["reward"] > 1.5 * lines[1]["reward"]
    assert Pair.open(path).name == "trained"
    assert train(micro_base, digits, ROWS, out=str(tmp_path), **OPTIONS) == path
    with pytest.raises(ValueError, match=r"other settings: task\.options\.sha256"):
        train(micro_base, digits, ROWS[:2], out=str(tmp_path), **OPTIONS)


@pytest.mark.parametrize(
    ("rewards", "rows", "options", "message"),
    [
        ("digitz", ROWS, {}, "reward 'digitz': unknown; known: exact"),
        ([], ROWS, {}, "give at least one"),
        (digits, [], {}, "dataset: has no rows"),
        (digits, [{"prompt": "x"}], {}, r"dataset\[0\]: needs strings"),
        (digits, ROWS, {"held_out": ROWS[:1]}, "held_out: 'say ' is a training prompt too"),
        (digits, ROWS, {"optm": {}}, "recipe: unknown optm"),
    ],
)
def test_what_python_gives_wrong_is_named(micro_base, tmp_path, rewards, rows, options, message):
    with pytest.raises(ValueError, match=message):
        train(micro_base, rewards, rows, out=str(tmp_path), **options)


def test_a_skipped_response_pulls_neither_way(micro_base, tmp_path):
    """Rewards add up; where none applies, a response stands at the mean of its group."""

    def odd(response, answer):
        return 1.0 if len(response) % 2 else None

    options = {**OPTIONS, "optim": {"steps": 1, "lr": 0.0}}
    pair = train(micro_base, [odd, "exact"], ROWS, name="both", out=str(tmp_path), **options)
    line = json.loads((pair.parent / "metrics.jsonl").read_text().splitlines()[1])
    assert 0 < line["reward"] < 1 and line["reward_skipped"] == 0
    pair = train(micro_base, odd, ROWS, name="odd", out=str(tmp_path), **options)
    line = json.loads((pair.parent / "metrics.jsonl").read_text().splitlines()[1])
    assert line["reward"] == 1 and line["grad_norm"] < 1e-6
