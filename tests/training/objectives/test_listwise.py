"""LPO and TPO: golden vectors, exact divergences under autograd, and both ways of seeing a list."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlvr_decode.training.objectives import OBJECTIVES, LossInputs, merge_metrics
from rlvr_decode.training.objectives.divergences import DIVERGENCES, alpha_divergence

LISTWISE = ["lpo_fwd", "lpo_rev", "lpo_js", "lpo_alpha", "lpo_hellinger", "tpo"]
GOLDEN = {
    "lpo_fwd": [-0.162380, 0.146360, 0.204858, -0.188837],
    "lpo_rev": [-0.233723, 0.176988, 0.293372, -0.236637],
    "lpo_js": [-0.045148, 0.038145, 0.055713, -0.048710],
    "lpo_alpha": [-0.188771, 0.157008, 0.235035, -0.203273],
    "lpo_hellinger": [-0.047193, 0.039252, 0.058759, -0.050818],
}
DISTANCES = {
    "lpo_fwd": lambda p, w: (w * (w / p).log()).sum(),
    "lpo_rev": lambda p, w: (p * (p / w).log()).sum(),
    "lpo_js": lambda p, w: (
        (w * (2 * w / (w + p)).log()).sum() / 2 + (p * (2 * p / (w + p)).log()).sum() / 2
    ),
    "lpo_alpha": lambda p, w: ((w * p).sqrt().sum() - 1) / (0.5 * (0.5 - 1)),
    "lpo_hellinger": lambda p, w: (p.sqrt() - w.sqrt()).square().sum() / 2,
}


def one_list(rewards: list[float], s: list[float]) -> LossInputs:
    """One prompt, responses of one token with log r = s."""
    logp = torch.tensor(s, dtype=torch.float64)[:, None] - 1.0
    return LossInputs(
        logp_BT=logp.requires_grad_(),
        old_logp_BT=torch.full_like(logp, -1.0),
        mask_BT=torch.ones_like(logp, dtype=torch.bool),
        rewards_B=torch.tensor(rewards, dtype=torch.float64),
        group_B=torch.zeros(len(rewards), dtype=torch.int64),
    )


def coefficients(name: str, x: LossInputs, **options: object) -> Tensor:
    objective = OBJECTIVES[name](**options)
    return -objective.project(objective.prepare(x)).advantages_BT[:, 0]


def gradient(loss: Tensor, x: LossInputs) -> Tensor:
    (grad,) = torch.autograd.grad(loss, x.logp_BT)
    return grad


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_coefficients(name):
    x = one_list([1, 0, 0, 1], [0.1, -0.2, 0.05, 0.0])
    c = coefficients(name, x, eps=0.0)
    torch.testing.assert_close(c, torch.tensor(GOLDEN[name], dtype=c.dtype), rtol=0, atol=5.1e-7)


def test_golden_target_list_and_losses():
    x = one_list([1, 0, 0, 1], [0.1, -0.2, 0.05, 0.0])
    objective = OBJECTIVES["lpo_fwd"](eps=0.0)
    batch = objective.prepare(x)
    assert batch.target_B.tolist() == pytest.approx(
        [0.440399, 0.059601, 0.059601, 0.440399], abs=5e-7
    )
    p = objective.project(batch).list_logp_B.exp()
    assert p.tolist() == pytest.approx([0.278018, 0.205961, 0.264459, 0.251561], abs=5.1e-7)
    assert objective(x).metrics["list_kl"].item() == pytest.approx(0.2864875403, abs=5e-11)
    metrics = objective(x).metrics
    assert metrics["list_entropy"].item() == pytest.approx(-(p * p.log()).sum().item())
    assert metrics["coefficient_abs"].item() == pytest.approx(
        sum(abs(c) for c in GOLDEN["lpo_fwd"]), abs=2e-6
    )
    values = {"lpo_rev": 0.3806801072, "lpo_js": 0.0786153067, "lpo_alpha": 0.3235899376}
    for name, value in values.items():
        assert DISTANCES[name](p, batch.target_B).item() == pytest.approx(value, abs=5e-10)
    sample = OBJECTIVES["lpo_fwd"](eps=0.0, ddof=1).prepare(x).target_B
    assert sample.tolist() == pytest.approx([0.424837, 0.075163, 0.075163, 0.424837], abs=5e-7)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("seed", range(5))
def test_coefficients_are_the_gradient_of_the_divergence(name, seed):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    s = torch.randn(6, generator=generator, dtype=torch.float64)
    x = one_list(rewards, s.tolist())
    target = OBJECTIVES[name]().prepare(x).target_B
    s.requires_grad_()
    (expected,) = torch.autograd.grad(DISTANCES[name](s.softmax(0), target), s)
    c = coefficients(name, x)
    torch.testing.assert_close(c, expected, rtol=1e-9, atol=1e-13)
    assert c.sum().item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "sum", "sum_over_const"])
def test_unclipped_loss_has_the_gradient_of_the_divergence(reduction, make_inputs):
    x = make_inputs(drift=0.3)
    options = {"logit_reduction": reduction, "clip_mode": "none", "max_tokens": 6}
    objective = OBJECTIVES["lpo_fwd"](**options)
    target = objective.prepare(x).target_B
    token_sums = ((x.logp_BT - x.old_logp_BT) * x.mask_BT).sum(-1)
    divisor = {"mean": x.mask_BT.sum(-1), "sum": 1, "sum_over_const": 6}[reduction]
    expected = torch.zeros((), dtype=torch.float64)
    for rows in (slice(0, 4), slice(4, 8), slice(8, 11)):
        p = (token_sums / divisor)[rows].softmax(0)
        expected = expected + DISTANCES["lpo_fwd"](p, target[rows]) / 3
    torch.testing.assert_close(gradient(objective(x).loss, x), gradient(expected, x))


def test_tpo_is_cross_entropy_with_the_policys_own_list(make_inputs):
    x = make_inputs(drift=0.3)
    sums, old_sums = (x.logp_BT * x.mask_BT).sum(-1), (x.old_logp_BT * x.mask_BT).sum(-1)
    expected = torch.zeros((), dtype=torch.float64)
    for rows in (slice(0, 4), slice(4, 8), slice(8, 11)):
        rewards = x.rewards_B[rows]
        z = (rewards - rewards.mean()) / (rewards.std(correction=0) * 0.5 + 1e-6)
        q = (z + old_sums[rows]).softmax(0)
        expected = expected - (q * sums[rows].log_softmax(0)).sum() / 3
    loss = OBJECTIVES["tpo"](eta=0.5)(x).loss
    torch.testing.assert_close(gradient(loss, x), gradient(expected, x))


@pytest.mark.parametrize("mode", ["hard", "pessimistic"])
def test_clip_modes(mode):
    """R = (1, 0): c = (−, +). Log-ratios outside ±log(1.2) on either side."""
    for s, blocked in [([0.5, -0.5], True), ([-0.5, 0.5], False)]:
        x = one_list([1, 0], s)
        outputs = OBJECTIVES["lpo_fwd"](clip_mode=mode)(x)
        c = coefficients("lpo_fwd", x)
        cut = torch.tensor(s).clamp(math.log(0.8), math.log(1.2)).double()
        plain = c * torch.tensor(s).double()
        worst = c * cut if mode == "hard" else torch.maximum(plain, c * cut)
        assert outputs.loss.item() == pytest.approx(worst.sum().item(), rel=1e-6)
        stopped = blocked or mode == "hard"
        expected = torch.zeros_like(c) if stopped else c
        torch.testing.assert_close(gradient(outputs.loss, x)[:, 0], expected)
        assert outputs.metrics["clip_fraction"].item() == (1.0 if stopped else 0.0)


@pytest.mark.parametrize("name", LISTWISE)
def test_two_passes_and_kept_groups_have_the_gradient_of_the_batch(name, make_inputs):
    x = make_inputs(drift=0.3)
    objective = OBJECTIVES[name]()
    whole = objective(x)
    expected = gradient(whole.loss, x)

    batch = objective.prepare(x)
    kept = [objective(micro) for micro in batch.split(5)]
    assert len(kept) == 3
    torch.testing.assert_close(gradient(sum(part.loss for part in kept), x), expected)

    with torch.no_grad():
        projected = objective.project(replace(batch, logp_BT=x.logp_BT.clone()))
    projected = replace(projected, logp_BT=x.logp_BT)
    anywhere = [objective(micro) for micro in projected.split(3)]
    assert len(anywhere) == 4
    torch.testing.assert_close(gradient(sum(part.loss for part in anywhere), x), expected)
    for parts in (kept, anywhere):
        merged = merge_metrics([part.metrics for part in parts])
        for key, value in whole.metrics.items():
            assert merged[key].item() == pytest.approx(value.item(), rel=1e-12), key


def test_part_of_a_group_is_refused(make_inputs):
    objective = OBJECTIVES["lpo_fwd"]()
    batch = objective.prepare(make_inputs())
    with pytest.raises(ValueError, match="group 7 has 2 of its 4 responses"):
        objective(batch.select(slice(0, 2)))
    with pytest.raises(ValueError, match="group 7 has 4 responses and a micro-batch 3"):
        list(batch.split(3))
    with pytest.raises(ValueError, match="projected already"):
        objective.project(objective.project(batch))


def test_coefficients_follow_the_policy(make_inputs):
    """A second step must not reuse the first step's coefficients."""
    objective = OBJECTIVES["lpo_fwd"](clip_mode="none")
    batch = objective.prepare(make_inputs(drift=0.0))
    later = make_inputs(drift=0.3)
    loss = objective(replace(batch, logp_BT=later.logp_BT)).loss
    torch.testing.assert_close(gradient(loss, later), gradient(objective(later).loss, later))


@pytest.mark.parametrize("name", LISTWISE)
def test_rewards_may_shift_and_under_sigma_scale(name, make_inputs):
    x = make_inputs(drift=0.3)
    moved = replace(x, rewards_B=3 * x.rewards_B + 5)
    objective = OBJECTIVES[name](eps=0.0)
    torch.testing.assert_close(objective(moved).loss, objective(x).loss, rtol=1e-10, atol=1e-13)
    if name != "tpo":
        shifted = replace(x, rewards_B=x.rewards_B + 5)
        plain = OBJECTIVES[name](temperature="one")
        torch.testing.assert_close(plain(shifted).loss, plain(x).loss, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("temperature", "tau"),
    [("sigma", 0.5), ("one", 1.0), ("mu", 0.5), (0.25, 0.25), ("batch_sigma", math.sqrt(5 / 24))],
)
def test_temperatures(temperature, tau):
    """R = (1, 0 | 1, 1, 1, 0): the first list has σ = μ = ½; centred rewards of the batch are
    ±½ twice, ¼ three times and −¾ once, so σ_B² = (2·¼ + 3/16 + 9/16)/6 = 5/24."""
    rewards = [1.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    x = replace(one_list(rewards, [0.0] * 6), group_B=torch.tensor([0, 0, 1, 1, 1, 1]))
    target = OBJECTIVES["lpo_fwd"](temperature=temperature, eps=0.0).prepare(x).target_B
    assert target[0].item() == pytest.approx(1 / (1 + math.exp(-1 / tau)))


@pytest.mark.parametrize("temperature", ["sigma", "one", "mu", "batch_sigma"])
@pytest.mark.parametrize("reward", [0.0, 1.0, -1.0])
def test_equal_rewards_push_nothing_on_policy_and_pull_back_later(temperature, reward):
    flat = OBJECTIVES["lpo_fwd"](temperature=temperature)
    here = one_list([reward] * 3, [0.0] * 3)
    torch.testing.assert_close(gradient(flat(here).loss, here), torch.zeros(3, 1).double())
    away = one_list([reward] * 3, [0.1, 0.0, -0.1])
    pull = gradient(flat(away).loss, away)[:, 0]
    assert pull[0] > 0 > pull[2]
    assert flat(away).metrics["zero_variance"].item() == 1.0


def test_mu_of_negative_rewards_prefers_nothing():
    """A length penalty can turn μ_G negative, and R/μ_G would prefer the worst."""
    target = OBJECTIVES["lpo_fwd"](temperature="mu").prepare(one_list([-1, -3], [0, 0])).target_B
    assert target.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("s", [0.0, 0.7])
def test_two_responses_are_soft_label_dpo(s):
    x = one_list([1.0, 0.0], [s, 0.0])
    c = coefficients("lpo_fwd", x, temperature=0.4, eps=0.0)
    margin = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    label = 1 / (1 + math.exp(-1 / 0.4))
    dpo = -label * torch.nn.functional.logsigmoid(margin)
    dpo = dpo - (1 - label) * torch.nn.functional.logsigmoid(-margin)
    (expected,) = torch.autograd.grad(dpo, margin)
    assert c[0].item() == pytest.approx(expected.item(), rel=1e-12)


def test_theorem_2_identity():
    """Expected reward of w* less that of P = τ·(KL(w*‖P) + KL(P‖w*)) on-policy."""
    x = one_list([0.3, 1.0, 0.0, 0.6], [0.0] * 4)
    w, p = (
        OBJECTIVES["lpo_fwd"](temperature=0.7, eps=0.0).prepare(x).target_B,
        torch.full((4,), 0.25),
    )
    gain = ((w - p) * x.rewards_B).sum().item()
    both = DISTANCES["lpo_fwd"](p, w) + DISTANCES["lpo_rev"](p, w)
    assert gain == pytest.approx(0.7 * both.item(), rel=1e-12)


def test_forward_kl_is_bounded_and_strengthens_rare_successes():
    c = coefficients(
        "lpo_fwd", one_list([1.0] + [0.0] * 7, [0.0] * 8), temperature="sigma", eps=0.0
    )
    assert c[0].item() == pytest.approx(-0.621, abs=5e-4)
    assert c[1].item() == pytest.approx(0.089, abs=5e-4)
    extreme = coefficients("lpo_fwd", one_list([1.0, 0.0, 0.0], [-9.0, 9.0, 0.0]))
    assert extreme.abs().max() <= 1 and extreme.abs().sum() <= 2


def test_a_response_without_counted_tokens_leaves_the_list(make_inputs):
    x = make_inputs(drift=0.3)
    gone = torch.arange(11) == 2
    masked = replace(x, mask_BT=x.mask_BT & ~gone[:, None])
    without = x.select((~gone).nonzero().flatten())
    for name in LISTWISE:
        objective = OBJECTIVES[name]()
        c = -objective.project(objective.prepare(masked)).advantages_BT[:, 0]
        assert c[2] == 0 and c[:4].sum().item() == pytest.approx(0.0, abs=1e-15)
        loss = objective(masked).loss
        torch.testing.assert_close(loss, objective(without).loss)
        assert gradient(loss, x).isfinite().all()


def test_extreme_targets_stay_finite():
    """τ so small that the worst target underflows: reverse KL and α stay finite."""
    x = one_list([1.0, 0.0], [0.0, 0.0])
    for name in GOLDEN:
        assert coefficients(name, x, temperature=1e-4).isfinite().all()


def test_alpha_limits_are_the_kl_divergences():
    p, w = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p, w, group = p.log_softmax(0), w.log_softmax(0), torch.zeros(5, dtype=torch.int64)
    for alpha, name in [(1 - 1e-7, "forward_kl"), (1e-7, "reverse_kl")]:
        near = alpha_divergence(p, w, group, alpha=alpha)
        torch.testing.assert_close(near, DIVERGENCES[name](p, w, group), rtol=1e-5, atol=1e-6)
    half = alpha_divergence(p, w, group, alpha=0.5)
    torch.testing.assert_close(half, 4 * DIVERGENCES["hellinger"](p, w, group))
