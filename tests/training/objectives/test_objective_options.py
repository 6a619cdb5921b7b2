"""What a user can get wrong: options, missing tensors, shapes, splitting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlvr_decode.training.objectives import OBJECTIVES, LossInputs, Totals

every_preset = pytest.mark.parametrize("name", sorted(OBJECTIVES))


@every_preset
def test_unknown_option_names_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"{name}: unknown 'learning_rate'; known: .*kl_coef"):
        OBJECTIVES[name](learning_rate=1e-6)


@every_preset
def test_docstring_names_its_source(name):
    doc = OBJECTIVES[name].__doc__
    assert doc and ("arXiv 2" in doc or "Williams 1992" in doc)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("grpo", {"clip_low": 1.5}, "clip_low=1.5"),
        ("grpo", {"clip_high": float("nan")}, "clip_high=nan"),
        ("grpo", {"clip_high": True}, "clip_high=True"),
        ("grpo", {"ddof": 2}, "ddof=2; known: 0, 1"),
        ("grpo", {"ddof": False}, "ddof=False"),
        ("grpo", {"dual_clip": 1.0}, "dual_clip=1.0"),
        ("grpo", {"eps": -1.0}, "eps=-1.0"),
        ("grpo", {"aggregation": "mean"}, "aggregation='mean'; known: token_mean"),
        ("grpo", {"aggregation": "constant"}, "max_tokens=None"),
        ("grpo", {"advantage": "gae"}, "advantage='gae'; known: reward"),
        ("grpo", {"kl_estimator": "k4"}, "kl_estimator='k4'; known: k1, k2, k3"),
        ("grpo", {"kl_coef": -0.1}, "kl_coef=-0.1"),
        ("grpo", {"correction": "token"}, "correction='token'"),
        ("grpo", {"correction_high": 0.5}, "correction_high=0.5"),
        ("grpo", {"reweighting": "rare"}, "reweighting='rare'"),
        ("grpo", {"reweighting_on": "all"}, "reweighting_on='all'"),
        ("dr_grpo", {"max_tokens": 0}, "max_tokens=0"),
        ("grpo", {"overlong_buffer": 4}, "overlong_tokens=None"),
        ("dapo", {"overlong_buffer": -1}, "overlong_buffer=-1"),
        ("cispo", {"cap": 0.2}, "cap=0.2 is a ratio"),
        ("cispo", {"cap": float("inf")}, "cap=inf"),
        ("sapo", {"temperature_neg": 0.0}, "temperature_neg=0.0"),
        ("dppo_tv", {"anchor": "ref"}, "anchor='ref'; known: rollout, old"),
        ("kl_cov", {"fraction": 20}, "fraction=20"),
        ("clip_cov", {"low": 5.0, "high": 1.0}, "low=5.0"),
        ("pass_at_k", {"k": 0}, "k=0"),
        ("pass_at_k", {"k": 2.0}, "k=2.0"),
        ("w_reinforce", {"positive_weight": -1.0}, "positive_weight=-1.0"),
        ("fipo", {"weight_low": 1.1}, "weight_low=1.1"),
        ("lpo_fwd", {"temperature": "std"}, "temperature='std'; known: sigma"),
        ("lpo_fwd", {"temperature": 0.0}, "temperature=0.0"),
        ("lpo_fwd", {"clip_mode": "soft"}, "clip_mode='soft'; known: pessimistic"),
        ("lpo_fwd", {"logit_reduction": "sum_over_const"}, "max_tokens=None"),
        ("lpo_fwd", {"aggregation": "token_mean"}, "its projection decides the aggregation"),
        ("lpo_fwd", {"advantage": "reward"}, "its projection decides the advantage"),
        ("lpo_alpha", {"alpha": 1}, "use lpo_rev for 0 and lpo_fwd for 1"),
        ("tpo", {"eta": 0.0}, "eta=0.0"),
    ],
)
def test_bad_values_are_named(name, options, message):
    with pytest.raises(ValueError) as error:
        OBJECTIVES[name](**options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "missing"),
    [
        ("remax", {}, "greedy_rewards_B"),
        ("verl", {}, "bonus_B"),
        ("dppo_tv", {}, "rollout_logp_BT"),
        ("grpo", {"kl_coef": 0.1}, "ref_logp_BT"),
        ("reinforce_pp", {"kl_in_reward": 0.1}, "ref_logp_BT"),
        ("lpo_fwd", {"correction": "token_mask"}, "rollout_logp_BT"),
        ("grpo", {"entropy_coef": 0.1}, "entropy_BT"),
    ],
)
def test_missing_tensors_are_named(name, options, missing, make_inputs):
    objective = OBJECTIVES[name](**options)
    assert objective.needs == {missing}
    with pytest.raises(ValueError, match=f"LossInputs.{missing}, which is None"):
        objective(replace(make_inputs(), **{missing: None}))


def test_most_objectives_need_only_rollouts(make_inputs):
    x = make_inputs()
    bare = LossInputs(
        logp_BT=x.logp_BT,
        old_logp_BT=x.old_logp_BT,
        mask_BT=x.mask_BT,
        rewards_B=x.rewards_B,
        group_B=x.group_B,
    )
    needy = {name for name in OBJECTIVES if OBJECTIVES[name]().needs}
    assert needy == {"remax", "dppo_tv", "dppo_kl", "verl"}
    for name in OBJECTIVES.keys() - needy - {"pass_at_k"}:
        assert OBJECTIVES[name]()(bare).loss.isfinite()


def test_dynamic_sampling_is_asked_for_by_dapo_and_its_heirs():
    asking = {name for name in OBJECTIVES if OBJECTIVES[name]().dynamic_sampling}
    weighted = {"reweight", "dominate", "normalize", "middle", "ppl", "ppl_norm"}
    assert asking == {"dapo", "fipo", *weighted}
    assert not OBJECTIVES["dapo"](dynamic_sampling=False).dynamic_sampling


def test_shapes_and_types_are_checked(make_inputs):
    x = make_inputs()
    with pytest.raises(ValueError, match=r"rewards_B has shape \(3,\), not \(11,\)"):
        replace(x, rewards_B=x.rewards_B[:3])
    with pytest.raises(ValueError, match=r"mask_BT has shape \(11, 5\), not \(11, 6\)"):
        replace(x, mask_BT=x.mask_BT[:, :5])
    with pytest.raises(ValueError, match=r"group_B is torch\.float64"):
        replace(x, group_B=x.group_B.double())
    with pytest.raises(ValueError, match="old_logp_BT carries a gradient"):
        replace(x, old_logp_BT=x.logp_BT)
    with pytest.raises(ValueError, match=r"logp_BT has shape \(11,\)"):
        replace(x, logp_BT=x.logp_BT[:, 0])
    with pytest.raises(ValueError, match="no responses"):
        OBJECTIVES["grpo"]()(x.select(slice(0, 0)))


def test_split_says_which_rows_it_took(make_inputs):
    x = make_inputs()
    batch = OBJECTIVES["grpo"]().prepare(x)
    assert [micro.row_B.tolist() for micro in batch.split(4)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10],
    ]
    order = torch.tensor([0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7])
    lists = OBJECTIVES["lpo_fwd"]().prepare(x.select(order))
    assert [micro.row_B.tolist() for micro in lists.split(8)] == [
        [0, 3, 6, 9, 1, 4, 7, 10],
        [2, 5, 8],
    ]
    with pytest.raises(ValueError, match=r"call objective\.prepare"):
        list(x.split(4))
    with pytest.raises(ValueError, match=r"call objective\.prepare"):
        list(replace(x, totals=batch.totals).split(4))
    with pytest.raises(ValueError, match="prepared already"):
        OBJECTIVES["grpo"]().prepare(batch)
    with pytest.raises(ValueError, match="size=0"):
        list(batch.split(0))


def test_mini_batches_are_counted_anew(make_inputs):
    """Two optimiser steps: 8 responses of 28 tokens to 2 prompts, then 3 of 8 to 1."""
    x = make_inputs()
    objective = OBJECTIVES["grpo"]()
    batch = objective.prepare(x)
    first, second = batch.mini_batches(2)
    assert first.totals == Totals(tokens=28, responses=8, prompts=2)
    assert second.totals == Totals(tokens=8, responses=3, prompts=1)
    alone = objective(x.select(torch.arange(8)))
    torch.testing.assert_close(objective(first).loss, alone.loss)
    parts = sum(objective(micro).loss for micro in first.split(3))
    torch.testing.assert_close(parts, alone.loss)
    with pytest.raises(ValueError, match="prompts=0"):
        list(batch.mini_batches(0))
    with pytest.raises(ValueError, match="prepare"):
        list(x.mini_batches(1))


def test_mini_batches_keep_the_batchs_advantages(make_inputs):
    x = make_inputs()
    batch = OBJECTIVES["lite_ppo"]().prepare(x)
    for part in batch.mini_batches(1):
        torch.testing.assert_close(part.advantages_BT, batch.advantages_BT[part.row_B])


def test_an_objective_shows_its_settings():
    shown = repr(OBJECTIVES["lpo_fwd"](temperature="mu", clip=0.3))
    for part in ("name='lpo_fwd'", "temperature='mu'", "clip=0.3", "clip_mode='pessimistic'"):
        assert part in shown
