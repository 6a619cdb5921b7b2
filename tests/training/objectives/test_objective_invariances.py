"""What must not matter, for every preset: padding, micro-batches, the order of rows, precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlvr_decode.training.objectives import OBJECTIVES, LossInputs, Totals, merge_metrics

OPTIONS = {"pass_at_k": {"k": 2}, "clip_cov": {"low": -9.0, "high": 9.0, "fraction": 0.2}}
LISTWISE = {"lpo_fwd", "lpo_rev", "lpo_js", "lpo_alpha", "lpo_hellinger", "tpo"}
# Their statistics are of the whole batch: it has to be prepared before it is divided.
OF_THE_WHOLE_BATCH = {
    "gpg", "lite_ppo", "reinforce_pp", "reinforce_pp_baseline", "clip_cov", "kl_cov",
    "a_grae",
}  # fmt: skip
COMPARES_NOTHING = {
    "reinforce", "reinforce_pp", "reinforce_pp_baseline", "remax", "psr", "nsr", "w_reinforce",
    "ngrpo",
}  # fmt: skip
EVERYTHING = {
    "kl_coef": 0.1,
    "kl_unbiased": True,
    "entropy_coef": 0.01,
    "correction": "token_truncate",
    "reweighting": "reweight",
}

every_preset = pytest.mark.parametrize("name", sorted(OBJECTIVES))


def build(name: str):
    return OBJECTIVES[name](**OPTIONS.get(name, {}), **EVERYTHING)


def loss_and_gradient(name: str, x: LossInputs) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    loss = build(name)(x).loss
    return loss, torch.autograd.grad(loss, x.logp_BT)[0]


@every_preset
def test_micro_batches_add_up(name, make_inputs):
    x = make_inputs()
    torch.manual_seed(0)
    objective = build(name)
    batch = objective.prepare(x)
    whole = objective(batch)
    (expected,) = torch.autograd.grad(whole.loss, x.logp_BT)
    for size in (5, 11) if name in LISTWISE else (1, 4, 11):
        parts = [objective(micro) for micro in batch.split(size)]
        loss = torch.stack([part.loss for part in parts]).sum()
        (found,) = torch.autograd.grad(loss, x.logp_BT)
        torch.testing.assert_close(loss, whole.loss, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15)
        merged = merge_metrics([part.metrics for part in parts])
        assert merged.keys() == whole.metrics.keys()
        for key, value in whole.metrics.items():
            torch.testing.assert_close(merged[key], value, rtol=1e-10, atol=1e-14, msg=key)


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - OF_THE_WHOLE_BATCH))
def test_processes_with_common_totals_add_up(name, make_inputs):
    """Two processes with whole groups, given the sums of their counts, as DDP would have them."""
    x = make_inputs()
    expected, gradient = loss_and_gradient(name, x)
    totals = Totals.of(x.mask_BT, x.group_B)
    halves = [x.select(torch.arange(8)), x.select(torch.arange(8, 11))]
    loss = sum(build(name)(replace(half, totals=totals)).loss for half in halves)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, x.logp_BT)[0], gradient)


@every_preset
def test_processes_that_prepare_the_gathered_batch_add_up(name, make_inputs):
    x = make_inputs()
    expected, gradient = loss_and_gradient(name, x)
    torch.manual_seed(0)
    objective = build(name)
    batch = objective.prepare(x)
    loss = sum(objective(batch.select(rows)).loss for rows in (slice(0, 8), slice(8, 11)))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, x.logp_BT)[0], gradient)


@every_preset
def test_padding_does_not_matter(name, make_inputs):
    x = make_inputs()
    expected, gradient = loss_and_gradient(name, x)
    junk = torch.full((11, 3), torch.nan, dtype=torch.float64)

    def longer(value: Tensor, filling: Tensor) -> Tensor:
        return torch.cat([filling[:, :2], value, filling[:, 2:]], dim=1)

    names = ("logp_BT", "old_logp_BT", "ref_logp_BT", "rollout_logp_BT", "entropy_BT")
    padded = {key: longer(getattr(x, key), junk) for key in names}
    padded["mask_BT"] = longer(x.mask_BT, torch.zeros(11, 3, dtype=torch.bool))
    torch.manual_seed(0)
    loss = build(name)(LossInputs(rewards_B=x.rewards_B, group_B=x.group_B, bonus_B=x.bonus_B,
                                  greedy_rewards_B=x.greedy_rewards_B, **padded)).loss  # fmt: skip
    torch.testing.assert_close(loss, expected)
    (found,) = torch.autograd.grad(loss, x.logp_BT)
    torch.testing.assert_close(found, gradient)
    assert (found[~x.mask_BT] == 0).all()


@every_preset
def test_garbage_under_the_mask_does_not_matter(name, make_inputs):
    x = make_inputs()
    expected, gradient = loss_and_gradient(name, x)
    leaf = x.logp_BT.detach().masked_fill(~x.mask_BT, torch.nan).requires_grad_()
    dirty = replace(x, logp_BT=leaf, old_logp_BT=x.old_logp_BT.masked_fill(~x.mask_BT, torch.inf))
    loss, found = loss_and_gradient(name, dirty)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, gradient)


# Clip-Cov draws by position; which tokens it draws from is tested elsewhere.
@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - {"clip_cov"}))
def test_order_of_rows_does_not_matter(name, make_inputs):
    x = make_inputs()
    expected, gradient = loss_and_gradient(name, x)
    order = torch.tensor([10, 3, 5, 0, 8, 1, 7, 2, 9, 4, 6])
    shuffled = x.select(order)
    torch.testing.assert_close(build(name)(shuffled).loss, expected)
    (found,) = torch.autograd.grad(build(name)(shuffled).loss, x.logp_BT)
    torch.testing.assert_close(found, gradient)


@every_preset
def test_names_of_groups_do_not_matter(name, make_inputs):
    x = make_inputs()
    renamed = replace(x, group_B=(x.group_B - 8) * 10**12)
    torch.testing.assert_close(loss_and_gradient(name, renamed), loss_and_gradient(name, x))


@every_preset
def test_half_precision_is_computed_in_float32(name, make_inputs):
    """bf16 inputs give what their float32 copies give, and float32 is close to float64."""
    x = make_inputs()

    def cast(dtype: torch.dtype) -> LossInputs:
        names = ("logp_BT", "old_logp_BT", "ref_logp_BT", "rollout_logp_BT", "entropy_BT")
        return replace(x, **{key: getattr(x, key).detach().bfloat16().to(dtype) for key in names})

    losses = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        torch.manual_seed(0)
        losses[dtype] = build(name)(cast(dtype)).loss
    assert losses[torch.bfloat16] == losses[torch.float32]
    assert losses[torch.float32].item() == pytest.approx(
        losses[torch.float64].item(), rel=2e-5, abs=2e-6
    )


@every_preset
def test_far_off_policy_stays_finite(name, make_inputs):
    """Log-ratios of thousands of nats, as after a broken weight sync: exp of them is infinite."""
    x = make_inputs()
    far = torch.where(torch.arange(6) % 2 == 0, -5000.0, -0.01).double().expand(11, 6)
    leaf = far.clone().requires_grad_()
    away = replace(x, logp_BT=leaf, old_logp_BT=far.flip(-1).contiguous())
    loss, gradient = loss_and_gradient(name, away)
    assert loss.isfinite() and gradient.isfinite().all()


@every_preset
def test_a_group_that_lost_responses_still_works(name, make_inputs):
    """One response of a prompt is left when the others could not be scored."""
    x = make_inputs().select(torch.tensor([0, 1, 2, 3, 4, 8, 9]))
    objective = build(name)
    batch = objective.prepare(x)
    assert objective(batch).loss.isfinite()
    if name not in COMPARES_NOTHING:
        assert objective.project(batch).advantages_BT[4].eq(0).all()


@every_preset
def test_every_response_masked_gives_zero(name, make_inputs):
    x = make_inputs()
    x = replace(x, mask_BT=torch.zeros_like(x.mask_BT))
    if name in LISTWISE:
        with pytest.raises(ValueError, match="every list has one response"):
            build(name)(x)
    elif name in {"clip_cov", "kl_cov"}:
        assert not build(name).prepare(x).selected_BT.any()
    else:
        assert build(name)(x).loss == 0


@every_preset
def test_a_nan_where_it_counts_is_not_hidden(name, make_inputs):
    x = make_inputs()
    objective = build(name)
    batch = objective.prepare(x)
    broken = x.logp_BT.detach().clone()
    broken[4, 0] = torch.nan
    assert objective(replace(batch, logp_BT=broken)).loss.isnan()
    with pytest.raises(ValueError, match="old_logp_BT is not finite"):
        objective.prepare(replace(x, old_logp_BT=broken))
    with pytest.raises(ValueError, match="rewards_B holds nan"):
        objective.prepare(replace(x, rewards_B=x.rewards_B * torch.nan))
