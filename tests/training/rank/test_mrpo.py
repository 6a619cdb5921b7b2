"""MRPO's reward and the cures for rank-chasing, on groups worked out by hand."""

import math

import pytest
import torch

from rlvr_decode.training.rank.mrpo import (
    a_grae,
    mrpo_advantages,
    mrpo_metrics,
    mrpo_rewards,
    normalised_rank,
)

# Two prompts, rows interleaved: prompt 7 is all right, prompt 3 is mixed.
GROUP_B = torch.tensor([7, 3, 7, 3, 7, 3])
CORRECT_B = torch.tensor([1, 1, 1, 0, 1, 1])
RANK_B = torch.tensor([11.0, 32.0, 21.0, 63.0, 31.0, 1.0])
LENGTH_B = torch.tensor([64, 500, 64, 64, 33, 64])


def test_wrong_answers_earn_nothing_whatever_their_rank() -> None:
    rewards_B = mrpo_rewards(CORRECT_B, RANK_B, LENGTH_B, GROUP_B)
    assert rewards_B[3] == 0
    assert rewards_B[CORRECT_B == 1].min() == 1


def test_bound_by_hand() -> None:
    # Of 64 tokens, 62 directions above one are possible; of 33 tokens, 31.
    expected = [1 + 0.5 * x for x in (10 / 62, 31 / 62, 20 / 62)]
    rewards_B = mrpo_rewards(CORRECT_B, RANK_B, LENGTH_B, GROUP_B)
    assert rewards_B[:3].tolist() == pytest.approx(expected, rel=1e-6)
    assert float(rewards_B[4]) == pytest.approx(1 + 0.5 * 30 / 31, rel=1e-6)
    assert float(rewards_B[5]) == 1.0
    uncentred_B = mrpo_rewards(CORRECT_B, RANK_B, LENGTH_B, GROUP_B, center=False)
    assert float(uncentred_B[0]) == pytest.approx(1 + 0.5 * 10 / 63, rel=1e-6)


@pytest.mark.parametrize("length", [1, 2])
def test_responses_too_short_to_spread_get_no_bonus(length: int) -> None:
    norm_B = normalised_rank(
        torch.ones(2), torch.tensor([length, 64]), torch.tensor([0, 0]), torch.ones(2)
    )
    assert norm_B.tolist() == [0.0, 0.0]


def test_group_and_batch_compare_correct_responses_only() -> None:
    by_group_B = normalised_rank(RANK_B, LENGTH_B, GROUP_B, CORRECT_B, norm="group")
    assert by_group_B.tolist() == pytest.approx([0, 1, 0.5, 0, 1, 0])
    by_batch_B = normalised_rank(RANK_B, LENGTH_B, GROUP_B, CORRECT_B, norm="batch")
    assert by_batch_B.tolist() == pytest.approx([10 / 31, 1, 20 / 31, 0, 30 / 31, 0])


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("correct", [[0, 0], [1, 0]])
def test_nothing_to_compare_is_zero(norm: str, correct: list[int]) -> None:
    correct_B, group_B = torch.tensor(correct), torch.tensor([0, 0])
    norm_B = normalised_rank(torch.tensor([5.0, 9.0]), group_B, group_B, correct_B, norm=norm)
    assert norm_B.tolist() == [0.0, 0.0]


def test_rank_chasing_and_its_two_cures() -> None:
    rewards_B = mrpo_rewards(CORRECT_B, RANK_B, LENGTH_B, GROUP_B)
    easy_B, hard_B = GROUP_B == 7, GROUP_B == 3

    chasing_B = mrpo_advantages(rewards_B, GROUP_B, std_floor=0.0)
    assert float(chasing_B[easy_B].std()) == pytest.approx(1, rel=1e-4)

    floored_B = mrpo_advantages(rewards_B, GROUP_B)
    deviation_B = rewards_B[easy_B] - rewards_B[easy_B].mean()
    assert floored_B[easy_B].tolist() == pytest.approx((deviation_B / 0.25).tolist(), rel=1e-4)
    torch.testing.assert_close(floored_B[hard_B], chasing_B[hard_B])

    capped_B = mrpo_advantages(rewards_B, GROUP_B, kappa=2.0)
    assert capped_B[easy_B].tolist() == [0.0, 0.0, 0.0]
    # Correctness alone gives (1, 0, 1) → (1/√3, −2/√3, 1/√3); rank may move each by half of it.
    plain_B = torch.tensor([1, -2, 1]) / math.sqrt(3)
    moved_B = (capped_B[hard_B] - plain_B).abs()
    assert (moved_B <= plain_B.abs() / 2 + 1e-5).all()
    assert float(moved_B.max()) > 0.05


def test_equal_rewards_teach_nothing_even_without_a_floor() -> None:
    rewards_B = torch.full((7,), 1.3)
    group_B = torch.zeros(7, dtype=torch.int64)
    assert mrpo_advantages(rewards_B, group_B, std_floor=0.0).tolist() == [0.0] * 7
    assert a_grae(rewards_B - 1, group_B).tolist() == [0.0] * 7


def test_alpha_zero_is_grpo() -> None:
    from rlvr_decode.training.objectives.advantages import group_normalised

    rewards_B = mrpo_rewards(CORRECT_B, RANK_B, LENGTH_B, GROUP_B, alpha=0.0)
    torch.testing.assert_close(
        mrpo_advantages(rewards_B, GROUP_B), group_normalised(CORRECT_B.float(), GROUP_B)
    )


def test_the_floor_spares_every_mixed_group_up_to_sixteen() -> None:
    for size in range(2, 17):
        for right in range(1, size):
            correct_B = torch.tensor([1.0] * right + [0.0] * (size - right))
            group_B = torch.zeros(size, dtype=torch.int64)
            floored_B = mrpo_advantages(correct_B, group_B)
            assert torch.equal(floored_B, mrpo_advantages(correct_B, group_B, std_floor=0.0))


def test_metrics_show_where_the_gradient_comes_from() -> None:
    advantages_B = torch.tensor([0.5, 1.0, 0.0, -2.0, -0.5, 1.0])
    metrics = mrpo_metrics(advantages_B, CORRECT_B, RANK_B, GROUP_B)
    assert metrics == pytest.approx(
        {
            "all_correct_share": 1.0 / 5.0,
            "rank_mean": 159 / 6,
            "rank_min": 1.0,
            "rank_correct": 96 / 5,
            "rank_wrong": 63.0,
        }
    )
    silent = mrpo_metrics(torch.zeros(6), CORRECT_B, RANK_B, GROUP_B)
    assert silent["all_correct_share"] == 0.0


def test_a_grae_by_hand() -> None:
    # One right of four: q = 1/4, √q = 1/2; a second group is all wrong, so m = 1/8.
    rewards_B = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
    group_B = torch.tensor([0] * 4 + [1] * 4)
    plain = [math.sqrt(3), -1 / math.sqrt(3)]  # population deviation √3/4
    blended = [7 / 8 * a + 1 / 8 * a for a in plain]  # both quotients are A / (2 · ½)
    advantages_B = a_grae(rewards_B, group_B, eps=0.0, ddof=0)
    assert float(advantages_B[0]) == pytest.approx(blended[0] / 8)
    assert advantages_B[1:4].tolist() == pytest.approx([blended[1]] * 3)
    assert advantages_B[4:].tolist() == [0.0] * 4


def test_a_grae_prefers_easy_prompts_early_and_hard_ones_late() -> None:
    def sizes(*accuracies: int) -> list[float]:
        rewards_B = torch.tensor([float(i < q) for q in accuracies for i in range(8)])
        group_B = torch.arange(len(accuracies)).repeat_interleave(8)
        wrong_B = a_grae(rewards_B, group_B).where(rewards_B == 0, 0).abs()
        return [float(wrong_B[group_B == g].max()) for g in range(len(accuracies))]

    hard, easy = sizes(1, 7)[:2]
    early_hard, early_easy = sizes(1, 7, 0, 0, 0, 0, 0, 0)[:2]
    late_hard, late_easy = sizes(1, 7, 8, 8, 8, 8, 8, 8)[:2]
    assert early_easy / early_hard > easy / hard > late_easy / late_hard


def test_a_grae_refuses_rewards_that_are_no_accuracies() -> None:
    with pytest.raises(ValueError, match=r"-1 to 1"):
        a_grae(torch.tensor([-1.0, 1.0]), torch.tensor([0, 0]))


def test_bad_settings_name_the_value() -> None:
    with pytest.raises(ValueError, match="norm='max'"):
        mrpo_rewards(CORRECT_B, RANK_B, LENGTH_B, GROUP_B, norm="max")
    with pytest.raises(ValueError, match="alpha=-1"):
        mrpo_rewards(CORRECT_B, RANK_B, LENGTH_B, GROUP_B, alpha=-1)
    with pytest.raises(ValueError, match=r"std_floor=-0\.1"):
        mrpo_advantages(RANK_B, GROUP_B, std_floor=-0.1)
    with pytest.raises(ValueError, match="kappa=0"):
        mrpo_advantages(RANK_B, GROUP_B, kappa=0)
