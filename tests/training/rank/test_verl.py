"""VERL's bonus by hand, its part in the loop, and the run that is cut short."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from rlvr_decode.training.config import Checkpoint, Objective, Optim
from rlvr_decode.training.objectives.advantages import group_normalised
from rlvr_decode.training.rank.ranks import response_hidden
from rlvr_decode.training.rank.spectral import effective_rank
from rlvr_decode.training.rank.trends import Trends, TrendSettings
from rlvr_decode.training.rank.verl import RankTrend, capped_bonus, verl_advantages, verl_bonus
from rlvr_decode.training.step import Trainer
from rlvr_decode.training.tasks.data import make_task
from rlvr_decode.training.trainer import make_objective, train_recipe


def trend(level: float, speed: float, acceleration: float) -> RankTrend:
    return RankTrend(level=level, speed=speed, acceleration=acceleration)


def values(found: RankTrend) -> tuple[float, float, float]:
    return found.level, found.speed, found.acceleration


def test_trend_of_growing_prefixes() -> None:
    growing = RankTrend.of(torch.tensor([2.0, 5.0, 7.0, 8.0]))
    assert values(growing) == pytest.approx((8.0, 2.0, -1.0))
    assert RankTrend.of(torch.tensor([4.0])) == trend(4.0, 0.0, 0.0)


def test_running_averages() -> None:
    mean = RankTrend.mean([trend(8.0, 2.0, -1.0), trend(4.0, 0.0, 3.0)])
    assert values(mean) == (6.0, 1.0, 1.0)
    assert values(trend(4.0, 1.0, 0.0).averaged(mean)) == pytest.approx((4.6, 1.0, 0.3))


def test_bonus_by_hand() -> None:
    usual = trend(4.0, 1.0, 1.0)
    bonus_B = verl_bonus([usual, trend(6.0, 0.5, 1.0)], usual)
    expected = 0.5 * math.tanh(0.5) + 0.5 * math.tanh(-0.5)
    assert bonus_B.tolist() == pytest.approx([0.0, expected], abs=1e-6)
    weight = 1 / (1 + math.exp(-2))
    steep = verl_bonus([trend(6.0, 1.0, 3.0)], usual)
    assert float(steep) == pytest.approx(weight * math.tanh(0.5), abs=1e-5)


def test_the_advantage_caps_the_bonus() -> None:
    advantages_B = torch.tensor([2.0, -1.0, 0.0, 1.0])
    bonus_B = torch.tensor([0.5, 3.0, 1.0, -2.0])
    assert capped_bonus(advantages_B, bonus_B).tolist() == [2.5, -0.5, 0.0, 1.0]
    with pytest.raises(ValueError, match="kappa=0"):
        capped_bonus(advantages_B, bonus_B, kappa=0)


def test_groups_without_a_lesson_get_nothing_whatever_the_bonus() -> None:
    rewards_B, group_B = torch.tensor([1.0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    bonus_B = torch.tensor([0.1, 0.1, 9, 9, 9, 9])
    advantages_B = verl_advantages(rewards_B, group_B, bonus_B=bonus_B)
    plain_B = group_normalised(rewards_B, group_B)
    raised_B = torch.tensor([0.1, 0.1, float(plain_B[2].abs()) / 2, 0, 0, 0])
    torch.testing.assert_close(advantages_B, plain_B + raised_B)


@pytest.fixture
def config(micro):
    return micro(
        objective=Objective(name="verl"),
        verl={"stride": 3, "decay": 0.5},
        optim=Optim(steps=3, lr=1e-2, warmup=0),
        checkpoint=Checkpoint(every=1, keep=0),
    )


def make_trainer(config) -> Trainer:
    return Trainer(config, make_task("digits", {}), make_objective(config), config.base)


@pytest.mark.parametrize("kept", [True, False], ids=["sampler", "again"])
def test_the_loop_compares_with_the_batches_before(config, kept) -> None:
    trainer = make_trainer(config)
    usual = None
    for step in (1, 2):
        _, rollouts, _ = trainer.draw(step)
        hidden_BTD = response_hidden(trainer.policy, rollouts)
        trends = []
        for hidden_TD, mask_T in zip(hidden_BTD, rollouts.mask_BT, strict=True):
            length = int(mask_T.sum())
            ends = sorted({*range(3, length, 3), length})
            ranks = [float(effective_rank(hidden_TD[:end])) for end in ends]
            trends.append(RankTrend.of(torch.tensor(ranks)))
        mean = RankTrend.mean(trends)
        before = usual or mean
        usual = before.averaged(mean, decay=0.5)
        given = rollouts if kept else replace(rollouts, hidden_BTD=None)
        bonus_B = trainer.trends.bonus(trainer.policy, given)
        assert bonus_B.std() > 0.05
        torch.testing.assert_close(bonus_B, verl_bonus(trends, before), rtol=1e-3, atol=1e-3)


def test_the_bonus_reaches_the_advantages(config) -> None:
    trainer = make_trainer(config)
    prompts, rollouts, rewards_B = trainer.draw(1)
    batch = trainer.objective.prepare(trainer.loss_inputs(1, prompts, rollouts, rewards_B))
    trends = Trends(TrendSettings(stride=3, decay=0.5))
    bonus_B = trends.bonus(trainer.policy, rollouts)
    expected_B = verl_advantages(rewards_B, batch.group_B, bonus_B=bonus_B)
    torch.testing.assert_close(batch.advantages_BT[:, 0], expected_B)


def test_a_run_cut_short_remembers_what_is_usual(config, tmp_path) -> None:
    runs = [replace(config, out=str(tmp_path / name)) for name in ("whole", "cut")]
    whole, cut = map(train_recipe, runs)
    cut.unlink()
    for step in (2, 3):
        shutil.rmtree(cut.parent / "checkpoints" / f"step-{step:06d}")
    train_recipe(runs[1])
    name = "rlvr/model.safetensors"
    assert (cut.parent / name).read_bytes() == (whole.parent / name).read_bytes()
    state = cut.parent / "checkpoints" / "step-000003" / "state.json"
    assert json.loads(state.read_text())["usual_rank"]["level"] > 1


def test_wrong_settings_are_told(config) -> None:
    with pytest.raises(ValueError, match="stride=0, rows=64: must be at least 1"):
        make_trainer(replace(config, verl={"stride": 0}))
    with pytest.raises(ValueError, match="decay=2"):
        make_trainer(replace(config, verl={"decay": 2.0}))
    with pytest.raises(ValueError, match=r"rank.layer and verl.layer differ \(\[-1, 1\]\)"):
        make_trainer(replace(config, rank={"layer": 1}))
