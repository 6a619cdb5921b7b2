"""Advantage estimators on examples small enough to do by hand, and their closed forms."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from rlvr_decode.training.objectives import advantages
from rlvr_decode.training.objectives.groups import group_mean, group_std

ONE = torch.zeros(4, dtype=torch.int64)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("estimator", "options", "expected"),
    [
        (advantages.reward, {"baseline": 0.25}, [0.75, -0.25, -0.25, -0.25]),
        (advantages.group_centred, {}, [0.75, -0.25, -0.25, -0.25]),
        (advantages.group_normalised, {"eps": 0.0, "ddof": 1}, [1.5, -0.5, -0.5, -0.5]),
        (
            advantages.group_normalised,
            {"eps": 0.0, "ddof": 0},
            [math.sqrt(3), -math.sqrt(1 / 3), -math.sqrt(1 / 3), -math.sqrt(1 / 3)],
        ),
        (advantages.leave_one_out, {}, [1.0, -1 / 3, -1 / 3, -1 / 3]),
        (advantages.maxrl, {"eps": 0.0}, [3.0, -1.0, -1.0, -1.0]),
        (advantages.signed, {"right": 0.1, "wrong": -1.0}, [0.1, -1.0, -1.0, -1.0]),
        (advantages.negative_part, {"eps": 0.0}, [0.0, -0.5, -0.5, -0.5]),
        (advantages.negative_part, {"eps": 0.0, "over": "kept"}, [0.0, -2 / 3, -2 / 3, -2 / 3]),
        (advantages.informative_share, {}, [0.75, -0.25, -0.25, -0.25]),
        (advantages.batch_normalised, {"eps": 0.0, "ddof": 1}, [1.5, -0.5, -0.5, -0.5]),
        # With the imagined success: mean 0.4, population std √0.24.
        (
            advantages.virtual_best,
            {"eps": 0.0},
            [0.6 / math.sqrt(0.24)] + [-0.4 / math.sqrt(0.24)] * 3,
        ),
        # Pass@2: ρ = 1 − C(3,2)/C(4,2) = ½, σ = ½; the right one is in passing pairs only.
        (advantages.pass_at_k, {"k": 2, "eps": 0.0}, [1.0, -1 / 3, -1 / 3, -1 / 3]),
    ],
)
def test_one_right_answer_of_four(estimator, options, expected):
    found = estimator(tensor(1, 0, 0, 0), ONE, **options)
    torch.testing.assert_close(found, tensor(*expected))


def test_lengths_weigh_in_the_optimal_baseline():
    """Lengths 1, 3: baseline (1·1 + 3·0)/4."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    found = advantages.length_weighted(tensor(1, 0), torch.tensor([5, 5]), mask_BT=mask)
    assert found.tolist() == [0.75, -0.25]


def test_groups_may_be_ragged_and_interleaved():
    rewards, groups = tensor(1, 0, 4, 0, 2, 3), torch.tensor([8, 3, 8, 3, 3, 1])
    found = advantages.group_centred(rewards, groups)
    torch.testing.assert_close(found, tensor(-1.5, -2 / 3, 1.5, -2 / 3, 4 / 3, 0))


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_binary_rewards_have_the_closed_form_of_the_group_accuracy(n):
    group = torch.zeros(n, dtype=torch.int64)
    for right in range(1, n):
        q = right / n
        rewards = (torch.arange(n) < right).double()
        population = advantages.group_normalised(rewards, group, eps=0.0, ddof=0)
        assert population[0].item() == pytest.approx(math.sqrt((1 - q) / q))
        assert population[-1].item() == pytest.approx(-math.sqrt(q / (1 - q)))
        sample = advantages.group_normalised(rewards, group, eps=0.0, ddof=1)
        torch.testing.assert_close(sample, population * math.sqrt((n - 1) / n))
        negative = advantages.negative_part(rewards, group, eps=0.0, ddof=0)
        assert negative.mean().item() == pytest.approx(-math.sqrt(q * (1 - q)))
        nsr = advantages.signed(rewards, group, right=0.0, wrong=-1.0)
        assert nsr.mean().item() == pytest.approx(q - 1)


def test_all_wrong_groups_teach_nsr_and_ngrpo_only():
    rewards = tensor(0, 0, 0, 0)
    assert advantages.group_normalised(rewards, ONE).tolist() == [0.0] * 4
    assert advantages.negative_part(rewards, ONE).tolist() == [0.0] * 4
    assert advantages.maxrl(rewards, ONE).tolist() == [0.0] * 4
    assert advantages.signed(rewards, ONE, right=0.0, wrong=-1.0).tolist() == [-1.0] * 4
    virtual = advantages.virtual_best(rewards, ONE, eps=0.0)
    torch.testing.assert_close(virtual, tensor(*[-0.5] * 4))  # −1/√4


@pytest.mark.parametrize("n", [2, 3, 8, 16])
def test_ngrpo_pushes_all_wrong_groups_by_one_over_root_n(n):
    zeros = torch.zeros(n, dtype=torch.float64)
    found = advantages.virtual_best(zeros, torch.zeros(n, dtype=torch.int64), eps=0.0)
    torch.testing.assert_close(found, torch.full_like(zeros, -1 / math.sqrt(n)))


def test_ngrpo_leaves_all_right_groups_alone():
    assert advantages.virtual_best(tensor(1, 1, 1, 1), ONE).tolist() == [0.0] * 4


@pytest.mark.parametrize("probabilities", [(0.5, 0.3, 0.2), (0.9, 0.05, 0.05)])
def test_expected_update_of_grpo_n_is_q_times_grpos(probabilities):
    """Tabular softmax, one right answer, exact advantages: the same on every logit."""
    p = tensor(*probabilities)
    right = tensor(1, 0, 0)
    q = float((p * right).sum())
    grpo = (right - q) / math.sqrt(q * (1 - q))

    def update(advantage: torch.Tensor) -> torch.Tensor:
        return p * (advantage - (p * advantage).sum())

    torch.testing.assert_close(update(grpo.clamp(max=0)), q * update(grpo))
    torch.testing.assert_close(update(grpo.clamp(min=0)), (1 - q) * update(grpo))
    torch.testing.assert_close(update(right), update(right - 1))  # PSR and NSR


@pytest.mark.parametrize("size", [2, 3, 5])
def test_maxrl_expects_the_gradient_of_the_truncated_log_likelihood(size):
    """Summed over all outcomes, the mean of A·score is d/dp of −Σ_{k<K} (1−p)^k/k."""
    p, total = 0.3, 0.0
    group = torch.zeros(size, dtype=torch.int64)
    for outcome in product([0.0, 1.0], repeat=size):
        chance = math.prod(p if right else 1 - p for right in outcome)
        score = tensor(*[1 / p if right else -1 / (1 - p) for right in outcome])
        total += chance * float((advantages.maxrl(tensor(*outcome), group, eps=0.0) * score).mean())
    assert total == pytest.approx(sum((1 - p) ** k for k in range(size - 1)))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_sums_to_zero_and_matches_its_closed_form(k):
    n = 5
    for right in range(n + 1):
        rewards = (torch.arange(n) < right).double()
        found = advantages.pass_at_k(rewards, torch.zeros(n, dtype=torch.int64), k=k, eps=1e-12)
        wrong = n - right
        rho = 1 - math.comb(wrong, k) / math.comb(n, k)
        if rho in (0.0, 1.0):
            assert found.tolist() == [0.0] * n
            continue
        sigma = math.sqrt(rho * (1 - rho))
        assert found[0].item() == pytest.approx((1 - rho) / sigma)
        lost = math.comb(wrong - 1, k - 1) / math.comb(n - 1, k - 1)
        assert found[-1].item() == pytest.approx((1 - rho - lost) / sigma)
        assert found.sum().item() == pytest.approx(0.0, abs=1e-9)


def test_graded_rewards_are_made_binary_first():
    found = advantages.signed(tensor(0.9, 0.1, 0.6, -0.2), ONE, right=1.0, wrong=-1.0)
    assert found.tolist() == [1.0, -1.0, 1.0, -1.0]


def test_equal_rewards_give_exact_zeros_in_float32():
    """Seven times 0.1 has a mean that is not 0.1 in floating point."""
    rewards, group = torch.full((7,), 0.1), torch.zeros(7, dtype=torch.int64)
    assert rewards[0] != group_mean(rewards, group)[0]
    assert group_std(rewards, group, ddof=0).tolist() == [0.0] * 7
    for estimator in (
        advantages.group_normalised,
        advantages.group_centred,
        advantages.leave_one_out,
        advantages.maxrl,
        advantages.informative_share,
    ):
        assert estimator(rewards, group).tolist() == [0.0] * 7


def test_what_cannot_be_compared_is_an_error():
    single = torch.arange(4)
    for estimator in (advantages.group_normalised, advantages.leave_one_out, advantages.maxrl):
        with pytest.raises(ValueError, match="at least 2 per prompt"):
            estimator(tensor(1, 0, 0, 1), single)
    with pytest.raises(ValueError, match="reward -1 is negative"):
        advantages.maxrl(tensor(-1, 0, 0, 0), ONE)
    with pytest.raises(ValueError, match="reward 2 exceeds best=1"):
        advantages.virtual_best(tensor(2, 0, 0, 0), ONE)
    with pytest.raises(ValueError, match="pass@5"):
        advantages.pass_at_k(tensor(1, 0, 0, 0), ONE, k=5)
    with pytest.raises(ValueError, match="over='some'"):
        advantages.signed(tensor(1, 0, 0, 0), ONE, right=1.0, wrong=0.0, over="some")
    with pytest.raises(ValueError, match="ref_logp_BT"):
        advantages.whitened_returns(
            tensor(1, 0, 0, 0), ONE, mask_BT=torch.ones(4, 1).bool(), kl_in_reward=0.1
        )


def test_whitening_counts_tokens():
    """Rewards 1 on one token and 0 on three: mean ¼, sample std ½."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    found = advantages.whitened_returns(tensor(1, 0), torch.tensor([0, 1]), mask_BT=mask, eps=0.0)
    torch.testing.assert_close(found[mask], tensor(1.5, -0.5, -0.5, -0.5))
