"""MRPO, A-GRAE and VERL as whole objectives: the GRPO loss with their advantages in it."""

from dataclasses import replace

import pytest
import torch

from rlvr_decode.training.objectives import OBJECTIVES, LossInputs
from rlvr_decode.training.objectives.presets.spectral import a_grae, mrpo, verl
from rlvr_decode.training.rank.mrpo import mrpo_rewards


def inputs(rewards_B: torch.Tensor) -> LossInputs:
    generator = torch.Generator().manual_seed(0)
    old_logp_BT = -torch.rand(8, 5, generator=generator)
    noise_BT = 0.2 * torch.randn(8, 5, generator=generator)
    return LossInputs(
        logp_BT=(old_logp_BT + noise_BT).requires_grad_(),
        old_logp_BT=old_logp_BT,
        mask_BT=torch.arange(5) < torch.tensor([5, 3, 4, 5, 1, 2, 5, 5])[:, None],
        rewards_B=rewards_B,
        group_B=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
    )


# The first prompt is mixed, the second all right.
CORRECT_B = torch.tensor([1.0, 0, 0, 1, 1, 1, 1, 1])


def loss_and_gradient(objective, batch: LossInputs) -> tuple[float, torch.Tensor]:
    output = objective(batch)
    (gradient_BT,) = torch.autograd.grad(output.loss, batch.logp_BT)
    return float(output.loss), gradient_BT


def test_without_rank_mrpo_is_grpo() -> None:
    ours = loss_and_gradient(mrpo(), inputs(CORRECT_B))
    theirs = loss_and_gradient(OBJECTIVES["grpo"](), inputs(CORRECT_B))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-8)


def test_rank_pushes_all_right_groups_only_as_far_as_the_cure_lets_it() -> None:
    rank_B = torch.tensor([3.0, 3, 3, 3, 1, 2, 3, 4])
    length_B = torch.full((8,), 64)
    group_B = inputs(CORRECT_B).group_B
    shaped_B = mrpo_rewards(CORRECT_B, rank_B, length_B, group_B)
    easy = {}
    for name, options in {
        "none": {"std_floor": 0.0},
        "floor": {},
        "cap": {"std_floor": 0.0, "kappa": 2.0},
    }.items():
        easy[name] = loss_and_gradient(mrpo(**options), inputs(shaped_B))[1][4:].abs().sum()
    assert easy["cap"] == 0
    assert 0 < easy["floor"] < 0.1 * easy["none"]


def test_a_grae_scales_each_side_of_grpo() -> None:
    _, ours_BT = loss_and_gradient(a_grae(), inputs(CORRECT_B))
    _, theirs_BT = loss_and_gradient(OBJECTIVES["grpo"](), inputs(CORRECT_B))
    root, mean = 0.5**0.5, 6 / 8
    wrong = (1 - mean) / (2 * (1 - root)) + mean / (2 * root)
    torch.testing.assert_close(ours_BT[1:3], wrong * theirs_BT[1:3], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(ours_BT[0], mean * wrong * theirs_BT[0], rtol=1e-5, atol=1e-8)
    assert ours_BT[4:].abs().sum() == 0


def test_verl_raises_each_response_by_its_capped_bonus() -> None:
    bonus_B = torch.tensor([0.2, 9.0, -1.0, 9.0, 9, 9, 9, 9])
    _, ours_BT = loss_and_gradient(verl(), replace(inputs(CORRECT_B), bonus_B=bonus_B))
    _, theirs_BT = loss_and_gradient(OBJECTIVES["grpo"](), inputs(CORRECT_B))
    # Two right of four: |A| = √(3/4), so 0.2 is below the cap of half of that and 9 above it.
    factors_B1 = torch.tensor([1 + 0.2 / 0.75**0.5, 0.5, 1.0, 1.5])[:, None]
    torch.testing.assert_close(ours_BT[:4], factors_B1 * theirs_BT[:4], rtol=1e-5, atol=1e-8)
    assert ours_BT[4:].abs().sum() == 0


def test_verl_without_a_bonus_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"LossInputs\.bonus_B, which is None"):
        verl()(inputs(CORRECT_B))
