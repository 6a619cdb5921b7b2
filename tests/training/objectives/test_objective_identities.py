"""Where papers must coincide: special cases of one objective that are another one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlvr_decode.training.objectives import OBJECTIVES, LossInputs, Objective


def gradient(objective: Objective, x: LossInputs) -> Tensor:
    (grad,) = torch.autograd.grad(objective(x).loss, x.logp_BT)
    return grad


def assert_same_gradient(first: Objective, second: Objective, x: LossInputs, factor: float = 1.0):
    expected = factor * gradient(second, x)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(gradient(first, x), expected, rtol=1e-9, atol=1e-14)


def equal_groups(x: LossInputs) -> LossInputs:
    """The two groups of four, so that means over prompts and over responses agree."""
    return x.select(torch.arange(8))


@pytest.mark.parametrize(
    ("temperature", "preset", "options"),
    [
        ("sigma", "grpo", {"ddof": 0}),
        ("mu", "maxrl", {"aggregation": "sequence_mean"}),
        ("one", "dr_grpo", {"aggregation": "sequence_mean"}),
        ("batch_sigma", "reinforce_pp_baseline", {"aggregation": "sequence_mean"}),
    ],
)
def test_reverse_kl_on_policy_is_the_matching_policy_gradient(
    temperature, preset, options, make_inputs
):
    x = make_inputs(drift=0.0)
    x = equal_groups(x)
    if preset == "reinforce_pp_baseline":
        # Its batch statistics count tokens; with equal lengths they are those of responses.
        x = replace(x, mask_BT=torch.ones_like(x.mask_BT))
        sample = (8 * 6 / (8 * 6 - 1)) ** 0.5
    else:
        sample = 1.0
    leaf = x.logp_BT.detach().requires_grad_()
    x = replace(x, logp_BT=leaf)
    first = OBJECTIVES["lpo_rev"](temperature=temperature, eps=1e-6)
    assert_close = gradient(first, x)
    expected = gradient(OBJECTIVES[preset](**options), x) * sample
    torch.testing.assert_close(assert_close, expected, rtol=3e-6, atol=1e-12)


def test_forward_kl_on_policy_is_the_advantage_k_w_minus_1(make_inputs):
    x = make_inputs(drift=0.0)
    x = replace(equal_groups(x), logp_BT=equal_groups(x).logp_BT.detach().requires_grad_())
    objective = OBJECTIVES["lpo_fwd"]()
    advantage = 4 * objective.prepare(x).target_B - 1
    plain = OBJECTIVES["reinforce"](aggregation="sequence_mean")
    torch.testing.assert_close(
        gradient(objective, x), gradient(plain, replace(x, rewards_B=advantage))
    )


def test_w_reinforce_without_positives_is_nsr(make_inputs):
    assert_same_gradient(
        OBJECTIVES["w_reinforce"](positive_weight=0.0), OBJECTIVES["nsr"](), make_inputs()
    )


def test_psr_plus_nsr_is_w_reinforce_of_weight_one(make_inputs):
    x = make_inputs()
    both = gradient(OBJECTIVES["psr"](), x) + gradient(OBJECTIVES["nsr"](), x)
    torch.testing.assert_close(gradient(OBJECTIVES["w_reinforce"](positive_weight=1.0), x), both)


def test_gspo_of_one_token_is_grpo(make_inputs):
    x = make_inputs()
    one = replace(x, mask_BT=x.mask_BT & (torch.arange(6) == 0))
    assert_same_gradient(OBJECTIVES["gspo"](clip_low=0.2, clip_high=0.2), OBJECTIVES["grpo"](), one)


def test_gspo_token_is_gspo_in_value_and_gradient(make_inputs):
    x = make_inputs(drift=0.0005)
    sequence, token = OBJECTIVES["gspo"](), OBJECTIVES["gspo_token"]()
    assert_same_gradient(token, sequence, x)
    torch.testing.assert_close(token(x).loss, sequence(x).loss)
    assert 0 < sequence(x).metrics["clip_fraction"] < 1


def test_gspo_with_token_mean_weighs_responses_by_length(make_inputs):
    """Why GSPO goes with the mean over responses: elsewhere long responses count for more."""
    x = make_inputs(drift=0.0)
    length = x.mask_BT.sum(-1, keepdim=True)
    sequence = gradient(OBJECTIVES["gspo"](), x) * 11 * length / 36
    torch.testing.assert_close(gradient(OBJECTIVES["gspo"](aggregation="token_mean"), x), sequence)


def test_luspo_is_gspo_times_length(make_inputs):
    x = make_inputs()
    full = replace(x, mask_BT=torch.ones_like(x.mask_BT))
    gspo = OBJECTIVES["gspo"](clip_low=2e-3, clip_high=2.5e-3)
    assert_same_gradient(OBJECTIVES["luspo"](), gspo, full, factor=6.0)


ON_POLICY_ALIKE = ["cispo", "vespo", "dapo", "dppo_tv", "dppo_kl", "kl_cov", "fipo"]


@pytest.mark.parametrize("name", ON_POLICY_ALIKE)
def test_trust_regions_vanish_on_policy(name, make_inputs):
    x = make_inputs(drift=0.0)
    x = replace(x, rollout_logp_BT=x.old_logp_BT)
    plain = OBJECTIVES["reinforce"](advantage="group_normalised", aggregation="token_mean")
    assert_same_gradient(OBJECTIVES[name](), plain, x)


@pytest.mark.parametrize("name", ["grpo", "gspo", "gmpo", "sapo"])
def test_sequence_mean_objectives_agree_on_policy(name, make_inputs):
    """SAPO's gate has slope A at r = 1; a geometric mean of ones moves like an arithmetic one."""
    plain = OBJECTIVES["reinforce"](advantage="group_normalised", aggregation="sequence_mean")
    assert_same_gradient(OBJECTIVES[name](), plain, make_inputs(drift=0.0))


def test_vespo_weight_is_one_at_one_and_fades_both_ways(make_inputs):
    def weight(log_ratio: float) -> float:
        x = LossInputs(
            logp_BT=torch.tensor([[log_ratio - 2.0], [-2.0]], dtype=torch.float64),
            old_logp_BT=torch.tensor([[-2.0], [-2.0]], dtype=torch.float64),
            mask_BT=torch.tensor([[True], [True]]),
            rewards_B=torch.tensor([1.0, 0.0]),
            group_B=torch.tensor([0, 0]),
        )
        x = replace(x, logp_BT=x.logp_BT.requires_grad_())
        on_policy = OBJECTIVES["reinforce"](advantage="group_normalised", aggregation="token_mean")
        return (gradient(OBJECTIVES["vespo"](), x) / gradient(on_policy, x))[0, 0].item()

    assert weight(0.0) == pytest.approx(1.0, abs=1e-12)
    # W² e^(3(1−W)) at W = 2, and at the far ends.
    assert weight(0.6931471805599453) == pytest.approx(4 * 2.718281828459045**-3, rel=1e-9)
    assert weight(-12.0) < 1e-8 and weight(6.0) < 1e-8


def test_dapo_with_equal_clips_and_grpo_of_token_mean_are_one(make_inputs):
    """TRL's "bnpo" on a single micro-batch."""
    dapo = OBJECTIVES["dapo"](clip_high=0.2)
    assert_same_gradient(OBJECTIVES["grpo"](aggregation="token_mean"), dapo, make_inputs())


def test_rloo_is_dr_grpo_times_k_over_k_minus_1(make_inputs):
    x = equal_groups(make_inputs(drift=0.0))
    x = replace(x, logp_BT=x.logp_BT.detach().requires_grad_())
    centred = OBJECTIVES["reinforce"](advantage="group_centred")
    assert_same_gradient(OBJECTIVES["rloo"](), centred, x, factor=4 / 3)


def test_dr_grpo_constant_is_token_mean_up_to_scale(make_inputs):
    x = make_inputs()
    token = OBJECTIVES["dr_grpo"](aggregation="token_mean")
    assert_same_gradient(OBJECTIVES["dr_grpo"](max_tokens=6), token, x, factor=36 / (11 * 6))


def test_pass_at_1_is_grpo_with_the_population_deviation(make_inputs):
    x = make_inputs()
    grpo = OBJECTIVES["grpo"](ddof=0, aggregation="token_mean")
    assert_same_gradient(OBJECTIVES["pass_at_k"](k=1), grpo, x)


def test_reweighting_by_zero_is_dapo(make_inputs):
    x = make_inputs()
    for name in ("reweight", "dominate", "ppl", "ppl_norm"):
        assert_same_gradient(OBJECTIVES[name](alpha=0.0), OBJECTIVES["dapo"](), x)


def test_reweighting_is_an_option_of_any_preset(make_inputs):
    x = make_inputs()
    option = OBJECTIVES["dapo"](reweighting="reweight", reweighting_alpha=0.2)
    assert_same_gradient(option, OBJECTIVES["reweight"](), x)


def test_negative_and_positive_parts_make_grpo(make_inputs):
    x = make_inputs()
    batch = OBJECTIVES["grpo"]().prepare(x)
    negative = OBJECTIVES["grpo_n"]().prepare(x)
    torch.testing.assert_close(negative.advantages_BT, batch.advantages_BT.clamp(max=0))


def test_kept_responses_set_the_scale_if_asked(make_inputs):
    """6 of 11 responses are wrong: the mean over them is 11/6 of the mean over all."""
    x = make_inputs()
    kept, every = OBJECTIVES["nsr"](over="kept"), OBJECTIVES["nsr"]()
    assert_same_gradient(kept, every, x, factor=11 / 6)
