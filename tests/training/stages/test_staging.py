"""The stage monitor in the loop: every diagnostic of a run, and what it takes for an answer."""

import json
from dataclasses import replace

import pytest
import torch

from rlvr_decode.training.config import Evaluation, Optim, Rollout, Task
from rlvr_decode.training.rank.spectral import trajectory_rank
from rlvr_decode.training.rewards.verifiable import FINAL
from rlvr_decode.training.stages.dynamics import batch_diagnostics
from rlvr_decode.training.step import Trainer
from rlvr_decode.training.tasks import data
from rlvr_decode.training.tasks.addition import Addition
from rlvr_decode.training.tasks.data import make_task
from rlvr_decode.training.tasks.task import Prompt, final_answers
from rlvr_decode.training.trainer import make_objective, train_recipe


class Parity:
    """Right is an even number of characters; the final answer is whether there is a digit."""

    def prompt(self, index, *, seed, split):
        return Prompt(text="say " * (1 + index % 3), answer="")

    def reward(self, prompt, response):
        return float(len(response) % 2 == 0)

    def answer(self, response):
        return str(any(character.isdigit() for character in response))


@pytest.fixture
def config(micro, monkeypatch):
    monkeypatch.setitem(data.TASKS, "parity", Parity)
    return micro(
        task=Task(name="parity"),
        stages={},
        rollout=Rollout(prompts=6, group=8, max_new_tokens=12),
        optim=Optim(steps=3, lr=1e-3, warmup=0),
        evaluation=Evaluation(every=1, prompts=4, samples=4),
    )


# What the design sheet asks of a run (§B.5), by the number of its list.
DIAGNOSTICS = {
    "1": ["token_entropy", "token_entropy_slope"],
    "2": ["cov_logp_pi_a", "cov_logp_a"],
    "3": ["modal_advantage"],
    "4": ["saturated", "saturated_negative"],
    "5": ["all_correct", "all_wrong", "mixed"],
    "6": ["rare_correct_p", "rare_correct_p_slope"],
    "7": ["pass_at_1", "pass_at_4", "pass_at_1_gap", "pass_at_4_gap"],
    "8": ["distinct_correct"],
    "9": ["rank_mean", "rank_min"],
    "detector": ["stage", "positive_weight"],
}


def test_every_diagnostic_is_in_the_metrics(config) -> None:
    path = train_recipe(config).parent / "metrics.jsonl"
    last = json.loads(path.read_text().splitlines()[-1])
    # Of an untrained model no token is above 0.99, so there is no share of those.
    missing = {n for names in DIAGNOSTICS.values() for n in names} - last.keys()
    assert missing <= {"saturated_negative"}
    assert last["positive_weight"] == 1.0


def test_answers_and_ranks_are_those_of_the_batch(config) -> None:
    trainer = Trainer(config, make_task("parity", {}), make_objective(config), config.base)
    prompts, rollouts, rewards_B = trainer.draw(1)
    batch = trainer.objective.prepare(trainer.loss_inputs(1, prompts, rollouts, rewards_B))
    metrics = trainer.step(1)
    expected = batch_diagnostics(
        logp_BT=rollouts.logp_BT,
        advantages_BT=batch.advantages_BT,
        mask_BT=rollouts.mask_BT,
        rewards_B=rewards_B,
        group_B=batch.group_B,
        answers=[str(any(c.isdigit() for c in text)) for text in rollouts.texts],
        solutions=rollouts.texts,
        rank_B=trajectory_rank(rollouts.hidden_BTD, rollouts.mask_BT),
    )
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    whole = batch_diagnostics(
        logp_BT=rollouts.logp_BT,
        advantages_BT=batch.advantages_BT,
        mask_BT=rollouts.mask_BT,
        rewards_B=rewards_B,
        group_B=batch.group_B,
        answers=rollouts.texts,
        solutions=rollouts.texts,
    )
    assert whole["modal_advantage"] != pytest.approx(expected["modal_advantage"])


def test_a_recipes_ranks_come_before_the_monitors(config) -> None:
    rank = {"window": 3, "stride": 1, "alpha": 0.0}
    ranked = replace(config, rank=rank)
    trainer = Trainer(ranked, make_task("parity", {}), make_objective(ranked), config.base)
    _, rollouts, _ = trainer.draw(1)
    rank_B = trajectory_rank(rollouts.hidden_BTD, rollouts.mask_BT, window=3, stride=1)
    assert trainer.step(1)["rank_mean"] == pytest.approx(float(rank_B.mean()))
    assert torch.all(rank_B <= 2 + 1e-6)


@pytest.mark.parametrize(
    ("reward", "response", "answer"),
    [
        ("exact", " so 4\n", "so 4"),
        ("after_semicolon", "1+1=02;0002", "0002"),
        ("last_number", "first 3, then 1,200.50", "1200.5"),
        ("last_number", "nothing", ""),
        ("math_verify", r"so \boxed{\frac{1}{2}}, done 7", r"\frac{1}{2}"),
        ("math_verify", r"\boxed{1}, no, \boxed{2}", "2"),
        ("math_verify", r"a box left open \boxed{3", "3"),
        ("math_verify", "it is 12", "12"),
    ],
)
def test_final_answers_by_reward(reward, response, answer) -> None:
    assert FINAL[reward](response) == answer


def test_tasks_tell_final_answers_if_they_can(tmp_path) -> None:
    assert final_answers(Addition(), ["7+6+0=13;0933", "?"]) == ["0933", "?"]
    assert final_answers(make_task("swaps", {}), ["Bob has it. So Eve."]) == ["Eve"]
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "1+1", "answer": "2"}\n')
    numbers = make_task("jsonl", {"path": str(path)})
    assert final_answers(numbers, ["it is 2.0", "2 or 3"]) == ["2", "3"]
    several = make_task("jsonl", {"path": str(path), "reward": ["last_number", "exact"]})
    assert final_answers(several, ["it is 2"]) == ["it is 2"]
