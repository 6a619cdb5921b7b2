"""A small ragged off-policy batch in float64: 11 responses to 3 prompts, some of them clipped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rlvr_decode.training.objectives import LossInputs

LENGTHS = [3, 5, 1, 4, 2, 6, 4, 3, 5, 2, 1]
REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
GROUPS = [7, 7, 7, 7, 2, 2, 2, 2, 9, 9, 9]  # mixed, mostly right, all wrong


@pytest.fixture
def make_inputs() -> Callable[..., LossInputs]:
    def make(*, drift: float = 0.4, seed: int = 0, **changes: object) -> LossInputs:
        generator = torch.Generator().manual_seed(seed)

        def noise() -> torch.Tensor:
            return torch.randn(11, 6, generator=generator, dtype=torch.float64)

        old = -noise().abs() - 0.05
        fields = {
            "logp_BT": (old + drift * noise()).clamp(max=-1e-3).requires_grad_(),
            "old_logp_BT": old,
            "mask_BT": torch.arange(6) < torch.tensor(LENGTHS)[:, None],
            "rewards_B": torch.tensor(REWARDS, dtype=torch.float64),
            "group_B": torch.tensor(GROUPS),
            "ref_logp_BT": old + 0.3 * noise(),
            "rollout_logp_BT": (old + 0.2 * noise()).clamp(max=-1e-3),
            "entropy_BT": noise().abs(),
            "greedy_rewards_B": torch.tensor([1.0] * 4 + [0.0] * 7, dtype=torch.float64),
            "bonus_B": torch.linspace(-0.3, 0.7, 11, dtype=torch.float64),
        }
        if drift == 0:
            fields["logp_BT"] = old.clone().requires_grad_()
        return LossInputs(**(fields | changes))

    return make
