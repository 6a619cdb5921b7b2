"""When the reference is reset, and what a reset does."""

import pytest
import torch
from torch import nn

from rlvr_decode.training.stages.reset import ResetRule, hard_reset, reset_reason


def reason(rule: ResetRule, *, steps: int = 1, kl: float = 0.0, seen: tuple[float, ...] = ()):
    return reset_reason(rule, steps=steps, kl=kl, evaluations=seen)


def test_nothing_triggers_by_default() -> None:
    assert reason(ResetRule(), steps=10**6, kl=9.0, seen=(0.5,) * 99) is None


def test_each_trigger_and_its_threshold() -> None:
    assert reason(ResetRule(every=100), steps=99) is None
    assert reason(ResetRule(every=100), steps=100) == "100 steps"
    assert reason(ResetRule(kl_above=0.5), kl=0.5) is None
    assert reason(ResetRule(kl_above=0.5), kl=0.51) == "kl 0.51"
    assert reason(ResetRule(flat=2), seen=(0.3, 0.2)) is None
    assert reason(ResetRule(flat=2), seen=(0.3, 0.2, 0.31)) is None
    assert reason(ResetRule(flat=2), seen=(0.3, 0.2, 0.3)) == "2 flat evaluations"


def test_reset_copies_the_policy_and_forgets_the_moments() -> None:
    torch.manual_seed(0)
    policy, reference = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1)
    policy(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    hard_reset(policy, reference, [optimizer])
    assert torch.equal(reference.weight, policy.weight)
    assert reference.weight.data_ptr() != policy.weight.data_ptr()
    assert not optimizer.state
    before = policy.weight.clone()
    optimizer.step()
    # A first AdamW step moves every weight by its learning rate, whatever the old moments were.
    moved = (policy.weight - before + 0.1 * 0.01 * before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-3, atol=0)


def test_bad_rules_are_named() -> None:
    with pytest.raises(ValueError, match="every=0"):
        ResetRule(every=0)
