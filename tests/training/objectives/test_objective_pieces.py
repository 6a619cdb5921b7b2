"""The pieces that presets share: KL estimators, rollout correction, aggregations, reweighting,
shaping, metrics."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rlvr_decode.training.objectives import OBJECTIVES, LossInputs, informative, overlong_penalty
from rlvr_decode.training.objectives.aggregations import AGGREGATIONS
from rlvr_decode.training.objectives.kl import KL_ESTIMATORS, k1, k2, k3
from rlvr_decode.training.objectives.trust_regions import discounted_future


def two_responses(**changes: object) -> LossInputs:
    """Lengths 1 and 3, one right and one wrong, old log p = −1; GRPO's A is ±√½."""
    fields: dict[str, object] = {
        "logp_BT": torch.full((2, 3), -1.0, dtype=torch.float64),
        "old_logp_BT": torch.full((2, 3), -1.0, dtype=torch.float64),
        "mask_BT": torch.tensor([[True, False, False], [True, True, True]]),
        "rewards_B": torch.tensor([1.0, 0.0], dtype=torch.float64),
        "group_B": torch.tensor([4, 4]),
    }
    return LossInputs(**(fields | changes))


def test_kl_estimators_by_hand():
    x = torch.tensor([0.5, -1.0], dtype=torch.float64)
    assert k1(x).tolist() == [0.5, -1.0]
    assert k2(x).tolist() == [0.125, 0.5]
    assert k3(x).tolist() == pytest.approx([math.exp(-0.5) - 0.5, math.e - 2])


def test_what_each_estimator_is_unbiased_for():
    """Over a whole vocabulary: expectations under π of values and of gradients."""
    generator = torch.Generator().manual_seed(0)
    logits, ref, old = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    logits.requires_grad_()
    logp, logref, logold = logits.log_softmax(0), ref.log_softmax(0), old.log_softmax(0)
    exact = (logp.exp() * (logp - logref)).sum()
    (slope,) = torch.autograd.grad(exact, logits, retain_graph=True)

    def expected(name: str, *, unbiased: bool) -> tuple[torch.Tensor, torch.Tensor]:
        sampler = logold if unbiased else logp.detach()
        values = KL_ESTIMATORS[name](logp - logref)
        if unbiased:
            values = values * (logp - logold).exp()
        mean = (sampler.exp() * values).sum()
        return mean.detach(), torch.autograd.grad(mean, logits, retain_graph=True)[0]

    for name in ("k1", "k3"):
        torch.testing.assert_close(expected(name, unbiased=False)[0], exact.detach())
        for found, want in zip(expected(name, unbiased=True), (exact.detach(), slope), strict=True):
            torch.testing.assert_close(found, want)
    torch.testing.assert_close(expected("k1", unbiased=False)[1], torch.zeros(5).double())
    torch.testing.assert_close(expected("k2", unbiased=False)[1], slope)
    assert (expected("k3", unbiased=False)[1] - slope).abs().max() > 0.05


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_penalty_is_added_per_token(estimator):
    gap = torch.tensor([[0.5, 9.0, 9.0], [-0.2, 0.1, 0.3]], dtype=torch.float64)
    x = two_responses()
    x = replace(x, ref_logp_BT=x.logp_BT - gap)
    plain, kl = OBJECTIVES["grpo"](), OBJECTIVES["grpo"](kl_coef=0.1, kl_estimator=estimator)
    value = KL_ESTIMATORS[estimator](gap)
    expected = 0.1 * (value[0, 0] + value[1].mean()) / 2
    assert (kl(x).loss - plain(x).loss).item() == pytest.approx(expected.item())
    assert kl(x).metrics["kl_ref"].item() == pytest.approx(
        (k3(gap)[0, 0] + k3(gap)[1].sum()).item() / 4
    )


@pytest.mark.parametrize(
    ("mode", "weights"),
    [
        ("token_truncate", [[1.5], [1.5, 0.5, 1.0]]),
        ("token_mask", [[0.0], [1.5, 0.0, 1.0]]),
        ("sequence_truncate", [[1.5], [0.6, 0.6, 0.6]]),
        ("sequence_mask", [[0.0], [0.6, 0.6, 0.6]]),
    ],
)
def test_rollout_correction(mode, weights):
    """ρ = 3 for the first response; 1.5 · 0.4 · 1 = 0.6 for the second; bounds [0.5, 1.5]."""
    ratios = torch.tensor([[3.0, 7.0, 7.0], [1.5, 0.4, 1.0]], dtype=torch.float64)
    x = two_responses()
    x = replace(x, rollout_logp_BT=x.old_logp_BT - ratios.log(), logp_BT=x.logp_BT.requires_grad_())
    options = {"correction": mode, "correction_low": 0.5, "correction_high": 1.5}
    outputs = OBJECTIVES["grpo"](eps=0.0, **options)(x)
    (gradient,) = torch.autograd.grad(outputs.loss, x.logp_BT)
    a = math.sqrt(0.5)
    expected = [[-a / 2 * weights[0][0], 0.0, 0.0], [a / 6 * w for w in weights[1]]]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64))
    counted = [*weights[0], *weights[1]]
    assert outputs.metrics["correction_mean"].item() == pytest.approx(sum(counted) / 4)
    outside = 2 / 4 if mode.startswith("token") else 1 / 4
    assert outputs.metrics["correction_outside"].item() == pytest.approx(outside)
    assert outputs.metrics["rollout_gap_max"].item() == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("token_mean", [1 / 4, 1 / 4]),
        ("sequence_mean", [1 / 2, 1 / 6]),
        ("sequence_sum", [1 / 2, 1 / 2]),
        ("constant", [1 / 20, 1 / 20]),
        ("prompt_mean", [1 / 4, 1 / 4]),
        ("list_mean", [1, 1 / 3]),
        ("list_sum", [1, 1]),
        ("list_constant", [1 / 10, 1 / 10]),
    ],
)
def test_aggregations(name, scales):
    batch = OBJECTIVES["grpo"]().prepare(two_responses())
    assert AGGREGATIONS[name](batch, max_tokens=10).tolist() == pytest.approx(scales)


def test_prompt_mean_counts_prompts_alike():
    """A prompt of one response of length 1 weighs as much as one of length 3."""
    batch = OBJECTIVES["reinforce"]().prepare(two_responses(group_B=torch.tensor([1, 2])))
    assert AGGREGATIONS["prompt_mean"](batch).tolist() == pytest.approx([1 / 2, 1 / 6])


def test_entropy_bonus():
    entropy = torch.tensor([[2.0, 9.0, 9.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    x = two_responses(entropy_BT=entropy)
    bonus = OBJECTIVES["grpo"](entropy_coef=0.1)(x).loss - OBJECTIVES["grpo"]()(x).loss
    assert bonus.item() == pytest.approx(-0.1 * (2 + 2) / 2)
    assert OBJECTIVES["grpo"]()(x).metrics["entropy"].item() == pytest.approx(8 / 4)


def test_dual_clip_bounds_the_loss_of_bad_tokens_only():
    """Ratios e² for a right token and e^2.5 for a wrong one."""
    x = two_responses(logp_BT=torch.tensor([[1.0, 0, 0], [1.5, -1.0, -1.0]]).double())
    x = replace(x, logp_BT=x.logp_BT.requires_grad_())
    outputs = OBJECTIVES["grpo"](dual_clip=3.0, eps=0.0, aggregation="token_mean")(x)
    a = math.sqrt(0.5)
    assert outputs.loss.item() == pytest.approx((-1.2 * a + 3 * a + a + a) / 4)
    assert torch.autograd.grad(outputs.loss, x.logp_BT)[0][1, 0] == 0
    assert outputs.metrics["clip_fraction"].item() == 0.5


@pytest.mark.parametrize(
    ("on", "right", "wrong"), [("both", 2, 2), ("positive", 2, 1), ("negative", 1, 2)]
)
def test_reweighting_by_sign_of_the_advantage(on, right, wrong):
    """Old probability ¾ and alpha 4: weight 1 + 4·¼ = 2 where it applies."""
    quarter = torch.full((2, 3), math.log(0.75), dtype=torch.float64)
    x = two_responses(old_logp_BT=quarter, logp_BT=quarter.clone().requires_grad_())
    objective = OBJECTIVES["reweight"](alpha=4.0, reweighting_on=on, aggregation="sequence_mean")
    outputs = objective(x)
    (gradient,) = torch.autograd.grad(outputs.loss, x.logp_BT)
    a = math.sqrt(0.5)
    assert gradient[0, 0].item() == pytest.approx(-right * a / 2, rel=1e-5)
    assert gradient[1, 1].item() == pytest.approx(wrong * a / 6, rel=1e-5)
    assert outputs.metrics["weight_mean"].item() == pytest.approx((right + 3 * wrong) / 4)


def test_the_sign_of_reweighting_turns_with_alpha(make_inputs):
    x = make_inputs()
    up = OBJECTIVES["reweight"](alpha=0.2).prepare(x).weight_BT[x.mask_BT]
    down = OBJECTIVES["reweight"](alpha=-0.2).prepare(x).weight_BT[x.mask_BT]
    torch.testing.assert_close(up + down, torch.full_like(up, 2.0))
    assert up.min() > 1 and up.max() <= 1.2
    for name, alpha in [
        ("reweight", -1.5),
        ("dominate", 1.5),
        ("normalize", 0.0),
        ("middle", -0.1),
    ]:
        with pytest.raises(ValueError, match="alpha"):
            OBJECTIVES[name](alpha=alpha).prepare(x)


def test_overlong_penalty():
    """Maximum 10 with a buffer of 4: free up to 6, −½ at 8, −1 from 10."""
    lengths = torch.tensor([0, 6, 7, 8, 10, 99])
    found = overlong_penalty(lengths, max_tokens=10, buffer=4)
    assert found.tolist() == [0, 0, -0.25, -0.5, -1, -1]
    with pytest.raises(ValueError, match="buffer=0"):
        overlong_penalty(lengths, max_tokens=10, buffer=0)


def test_dynamic_sampling_keeps_mixed_groups():
    rewards, groups = torch.tensor([1.0, 1, 0, 1, 0, 0]), torch.tensor([3, 3, 5, 5, 9, 9])
    assert informative(rewards, groups).tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("length", [1, 2, 5, 8, 13])
def test_discounted_future_is_the_recurrence(length):
    x = torch.randn(2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, carry = torch.zeros_like(x), torch.zeros(2, dtype=torch.float64)
    for t in reversed(range(length)):
        carry = x[:, t] + 0.9 * carry
        expected[:, t] = carry
    torch.testing.assert_close(discounted_future(x, discount=0.9), expected)


def test_fipo_leaves_outliers_out():
    """A wrong response with one ratio of e³ > 10: weight 1 there, and not in the sum before it."""
    logp = torch.tensor([[-1.0, -1, -1], [-1.0, 2.0, -0.9]], dtype=torch.float64)
    x = two_responses(logp_BT=logp.requires_grad_())
    objective = OBJECTIVES["fipo"](half_life=1.0, clip_low=0.5, clip_high=99.0)
    (gradient,) = torch.autograd.grad(objective(x).loss, x.logp_BT)
    a, r = math.sqrt(0.5), torch.tensor([1.0, math.e**3, math.exp(0.1)])
    f = torch.tensor([math.exp(0.25 * 0.1), 1.0, math.exp(0.1)])
    assert gradient[1].tolist() == pytest.approx((a / 4 * r * f).tolist(), rel=1e-5)


def test_metrics_by_hand():
    logp = torch.tensor([[-0.5, 0, 0], [-1.0, -1.5, -0.9]], dtype=torch.float64)
    x = two_responses(logp_BT=logp)
    metrics = OBJECTIVES["grpo"](eps=0.0)(x).metrics
    ratios = [math.exp(0.5), 1.0, math.exp(-0.5), math.exp(0.1)]
    assert metrics["clip_fraction"].item() == 0.5  # above for A > 0, below for A < 0
    assert metrics["ratio_mean"].item() == pytest.approx(sum(ratios) / 4)
    assert metrics["ratio_max"].item() == pytest.approx(math.exp(0.5))
    assert metrics["kl_old"].item() == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 4)
    assert metrics["advantage_abs"].item() == pytest.approx(math.sqrt(0.5))
    assert metrics["weight_mean"].item() == 1.0
    assert not any(value.requires_grad for value in metrics.values())


def test_zero_variance_is_a_share_of_prompts(make_inputs):
    metrics = OBJECTIVES["grpo"]()(make_inputs()).metrics
    assert metrics["zero_variance"].item() == pytest.approx(1 / 3)


def test_dppo_masks_outward_moves_only():
    """p from 0.5 to 0.8: masked where A > 0, kept where A < 0; a small move is kept."""
    anchor = torch.full((2, 3), 0.5, dtype=torch.float64).log()
    p = torch.tensor([[0.8, 0.5, 0.5], [0.8, 0.2, 0.45]], dtype=torch.float64)
    x = two_responses(logp_BT=p.log().requires_grad_(), old_logp_BT=anchor, rollout_logp_BT=anchor)
    for name in ("dppo_tv", "dppo_kl"):
        (gradient,) = torch.autograd.grad(OBJECTIVES[name]()(x).loss, x.logp_BT)
        assert (gradient == 0).tolist() == [[True, True, True], [False, True, False]]
        outputs = OBJECTIVES[name](anchor="old")(replace(x, rollout_logp_BT=None))
        assert outputs.metrics["clip_fraction"].item() == 0.5


def test_dppo_caps_the_weight_of_tokens_that_came_back():
    """A wrong token risen from 0.01 to 0.5 keeps its push down, with weight 20 instead of 50."""
    anchor = torch.full((2, 3), 0.01, dtype=torch.float64).log()
    p = torch.tensor([[0.01, 0.5, 0.5], [0.5, 0.01, 0.01]], dtype=torch.float64)
    x = two_responses(logp_BT=p.log().requires_grad_(), old_logp_BT=anchor, rollout_logp_BT=anchor)
    (gradient,) = torch.autograd.grad(OBJECTIVES["dppo_tv"]()(x).loss, x.logp_BT)
    assert (gradient[1, 0] / gradient[1, 1]).item() == pytest.approx(20)
