"""The loss formulas of TRL 1.16's GRPOTrainer, against the presets that claim to equal them.

TRL itself is not needed here: `trl_loss` restates its formulas on whole tensors.
benchmarks/trl_parity.py runs TRL's own code beside ours and finds the same.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlvr_decode.training.objectives import OBJECTIVES, LossInputs

EPS = 1e-4
SAME = [
    ("grpo", {}, {"loss": "grpo"}),
    ("grpo", {"aggregation": "token_mean"}, {"loss": "bnpo"}),
    ("dr_grpo", {"max_tokens": 50}, {"loss": "dr_grpo", "scale": "none"}),
    ("grpo", {"aggregation": "constant", "max_tokens": 50}, {"loss": "dr_grpo"}),
    ("dapo", {"overlong_buffer": 0}, {"loss": "dapo", "high": 0.28}),
    ("lite_ppo", {}, {"loss": "dapo", "scale": "batch"}),
    ("cispo", {"cap": 1.5}, {"loss": "cispo", "high": 1.5}),
    ("sapo", {}, {"loss": "sapo"}),
    ("vespo", {}, {"loss": "vespo"}),
    ("gspo", {}, {"loss": "grpo", "level": "sequence", "low": 3e-4, "high": 4e-4}),
    ("luspo", {}, {"loss": "luspo", "level": "sequence", "low": 2e-3, "high": 2.5e-3}),
    ("grpo", {"kl_coef": 0.04}, {"loss": "grpo", "beta": 0.04}),
    ("grpo", {"kl_coef": 0.04, "kl_unbiased": True}, {"loss": "grpo", "beta": 0.04, "unbiased": 1}),
    ("dapo", {"overlong_buffer": 0, "kl_coef": 0.1}, {"loss": "dapo", "high": 0.28, "beta": 0.1}),
]


def advantages(x: LossInputs, scale: str) -> Tensor:
    found = torch.zeros(11, dtype=torch.float64)
    for rows in (slice(0, 4), slice(4, 8), slice(8, 11)):
        rewards = x.rewards_B[rows]
        spread = {"group": rewards.std(), "batch": x.rewards_B.std(), "none": None}[scale]
        centred = rewards - rewards.mean()
        found[rows] = centred if spread is None else centred / (spread + EPS)
    return found[:, None]


def trl_loss(
    x: LossInputs,
    *,
    loss: str,
    level: str = "token",
    scale: str = "group",
    low: float = 0.2,
    high: float = 0.2,
    beta: float = 0.0,
    unbiased: bool = False,
) -> Tensor:
    mask, a = x.mask_BT.double(), advantages(x, scale)
    lengths = mask.sum(1, keepdim=True)
    log_ratio = x.logp_BT - x.old_logp_BT
    if level == "sequence":
        r = ((log_ratio * mask).sum(1, keepdim=True) / lengths).exp()
    else:
        r = log_ratio.exp()
    if loss == "cispo":
        token_loss = -r.detach().clamp(max=high) * a * x.logp_BT
    elif loss == "sapo":
        tau = 1.0 + 0.05 * (a <= 0).double()
        token_loss = -a * torch.sigmoid(tau * (r - 1)) * 4 / tau
    elif loss == "vespo":
        w = (log_ratio.detach() * mask).sum(1, keepdim=True).exp()
        k, lam = 2.0 + (a < 0).double(), 3.0 - (a < 0).double()
        token_loss = -(w**k) * (lam * (1 - w)).exp() * a * x.logp_BT
    else:
        token_loss = torch.maximum(-r * a, -r.clamp(1 - low, 1 + high) * a)
    if beta:
        gap = x.ref_logp_BT - x.logp_BT
        kl = gap.exp() - gap - 1
        token_loss = token_loss + beta * (kl * r if unbiased else kl)
    summed = (token_loss * mask).sum(1)
    return {
        "grpo": (summed / lengths[:, 0]).mean(),
        "sapo": (summed / lengths[:, 0]).mean(),
        "dr_grpo": summed.sum() / (11 * 50),
        "luspo": summed.mean(),
    }.get(loss, summed.sum() / mask.sum())


@pytest.mark.parametrize("drift", [0.0, 0.01, 0.4])
@pytest.mark.parametrize(("preset", "options", "settings"), SAME)
def test_same_loss_and_gradient_as_trl(preset, options, settings, drift, make_inputs):
    x = make_inputs(drift=drift)
    eps = {} if preset == "dr_grpo" else {"eps": EPS}
    ours, theirs = OBJECTIVES[preset](**options, **eps)(x).loss, trl_loss(x, **settings)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10, abs=1e-12)
    (our_gradient,) = torch.autograd.grad(ours, x.logp_BT)
    (their_gradient,) = torch.autograd.grad(theirs, x.logp_BT)
    assert their_gradient.abs().max() > 1e-5
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-9, atol=1e-13)


def test_trls_dr_grpo_alone_keeps_the_standard_deviation(make_inputs):
    x = make_inputs()
    ours = OBJECTIVES["dr_grpo"](max_tokens=50)(x).loss
    assert abs(ours - trl_loss(x, loss="dr_grpo")) > 1e-4


def test_trls_cispo_cap_left_at_epsilon_cuts_every_weight(make_inputs):
    """On-policy every weight should be 1; with the cap at 0.2 all are 0.2."""
    x = make_inputs(drift=0.0)
    (right,) = torch.autograd.grad(OBJECTIVES["cispo"](eps=EPS)(x).loss, x.logp_BT)
    (cut,) = torch.autograd.grad(trl_loss(x, loss="cispo", high=0.2), x.logp_BT)
    torch.testing.assert_close(cut, 0.2 * right)


def test_trls_bnpo_depends_on_how_the_batch_is_cut(make_inputs):
    """Its micro-batches average over their own tokens; the mean of two is not the batch's."""
    x = make_inputs()
    objective = OBJECTIVES["grpo"](aggregation="token_mean")
    batch = objective.prepare(x)
    whole = objective(batch).loss
    cut = torch.stack([objective(part).loss for part in batch.mini_batches(2)]).mean()
    assert abs(cut - whole) > 1e-3
