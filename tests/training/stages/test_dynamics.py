"""Per-batch diagnostics, on batches small enough to work out, and on the bandit to the step."""

import math

import pytest
import torch
from torch import Tensor

from rlvr_decode.training.stages.dynamics import (
    batch_diagnostics,
    distinct_correct,
    entropy_covariances,
    group_shares,
    modal_advantage,
    rare_correct,
    saturation,
)
from rlvr_decode.training.stages.simulate import Bandit, entropy, mean_field


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def batch() -> dict[str, object]:
    """Two prompts of three responses of up to two tokens; the padding is NaN."""
    p_BT = [[0.5, 0.8], [0.999, math.nan], [0.25, 0.5], [0.9, 0.9], [0.4, math.nan], [0.995, 0.1]]
    logp_BT = torch.tensor(p_BT, dtype=torch.float64).log()
    advantages_B = torch.tensor([1.0, -2.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    return {
        "logp_BT": logp_BT,
        "advantages_BT": advantages_B[:, None].expand(6, 2).where(~logp_BT.isnan(), torch.nan),
        "mask_BT": ~logp_BT.isnan(),
        "rewards_B": torch.tensor([1.0, 0, 1, 1, 1, 1]),
        "group_B": torch.tensor([4, 4, 4, 9, 9, 9]),
        "answers": ["12", "7", "12", "3", "3", "3"],
        "solutions": ["a", "b", "c", "d", "d", "e"],
    }


def test_every_diagnostic_of_a_batch_by_hand() -> None:
    found = batch_diagnostics(**batch(), rank_B=torch.tensor([2.0, 4, 6, 8, 1, 3]))
    tokens = [0.5, 0.8, 0.999, 0.25, 0.5, 0.9, 0.9, 0.4, 0.995, 0.1]
    advantages = [1, 1, -2, 1, 1, 0, 0, 0, 0, 0]
    mean = sum(map(math.log, tokens)) / 10
    pairs = list(zip(tokens, advantages, strict=True))
    likelihood = [math.log(0.4) / 2, math.log(0.125) / 2, math.log(0.9), math.log(0.4), None]
    likelihood[4] = math.log(0.0995) / 2
    # Correct responses in order of likelihood: 0.0995, 0.125, 0.4 (short), 0.4, 0.81; the median
    # is the short one, and the two below it have the tokens 0.995, 0.1, 0.25 and 0.5.
    assert found == pytest.approx(
        {
            "token_entropy": -mean,
            "cov_logp_pi_a": sum((math.log(p) - mean) * p * a for p, a in pairs) / 10,
            "cov_logp_a": sum((math.log(p) - mean) * a for p, a in pairs) / 10,
            "saturated": 2 / 10,
            "saturated_negative": 1 / 2,
            "all_correct": 1 / 2,
            "all_wrong": 0.0,
            "mixed": 1 / 2,
            "rare_correct_p": rare(likelihood),
            "modal_advantage": 1.0,
            "distinct_correct": 2.0,
            "rank_mean": 4.0,
            "rank_min": 1.0,
        },
        rel=1e-6,
    )


def rare(likelihood: list[float | None]) -> float:
    below = [value for value in likelihood if value is not None]
    tokens = {0: [0.5, 0.8], 1: [0.25, 0.5], 2: [0.9, 0.9], 3: [0.4], 4: [0.995, 0.1]}
    median = sorted(below)[2]
    chosen = [p for i, value in enumerate(below) if value < median for p in tokens[i]]
    return sum(chosen) / len(chosen)


def test_given_entropies_replace_the_estimate() -> None:
    values = batch()
    entropy_BT = torch.full((6, 2), 0.7).where(values["mask_BT"], torch.nan)
    assert batch_diagnostics(**values, entropy_BT=entropy_BT)["token_entropy"] == pytest.approx(0.7)


def test_what_is_undefined_is_left_out() -> None:
    values = batch() | {"rewards_B": torch.zeros(6)}
    found = batch_diagnostics(**values)
    assert not {"rare_correct_p", "modal_advantage", "distinct_correct"} & found.keys()
    assert found["all_wrong"] == 1.0


def test_order_of_rows_does_not_matter() -> None:
    values = batch()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = {
        name: value[order] if isinstance(value, Tensor) else [value[i] for i in order]
        for name, value in values.items()
    }
    assert batch_diagnostics(**shuffled) == pytest.approx(batch_diagnostics(**values))


def test_covariances_turn_with_the_bandit_to_the_step() -> None:
    """Rows weighted by their probabilities are the exact expectation over tokens."""
    bandit = Bandit()
    path = mean_field(bandit, eta=0.1, steps=1000)
    plain, natural = [], []
    for pi_K, advantages_K in zip(path.probs_SK, path.advantages_SK, strict=True):
        found = entropy_covariances(pi_K.log()[None], advantages_K[None], pi_K[None])
        plain.append(float(found["cov_logp_pi_a"]))
        natural.append(float(found["cov_logp_a"]))
    assert turns(plain)[-2:] == [363, 725]
    assert turns(natural)[-2:] == [465, 722]
    assert int(entropy(path.probs_SK[:725]).argmin()) == 363


def turns(values: list[float]) -> list[int]:
    return [s for s in range(1, len(values)) if (values[s] > 0) != (values[s - 1] > 0)]


def test_the_modal_advantage_marks_the_bandits_stage_boundary() -> None:
    """A batch with each answer as often as it is likely; 0.8/1/0 turn when mean passes 0.8."""

    def modal(good: int, best: int, bad: int) -> float:
        rewards_B = torch.tensor([0.8] * good + [1.0] * best + [0.0] * bad)
        advantages_B1 = (rewards_B - rewards_B.mean())[:, None]
        answers = ["good"] * good + ["best"] * best + ["bad"] * bad
        ones_B1 = torch.ones_like(advantages_B1)
        found = modal_advantage(
            -ones_B1, advantages_B1, ones_B1, rewards_B, torch.zeros(len(answers)).long(), answers
        )
        return float(found["modal_advantage"])

    # π_bad < π_best / 4 is where the favourite turns negative.
    assert modal(good=90, best=4, bad=2) > 0
    assert modal(good=90, best=9, bad=2) < 0
    assert modal(good=90, best=8, bad=2) == pytest.approx(0, abs=1e-6)


def test_equally_frequent_answers_are_settled_by_likelihood() -> None:
    logp_BT = logs([0.3], [0.9], [0.5])
    ones_BT = torch.ones_like(logp_BT)
    advantages_BT = torch.tensor([[1.0], [-2.0], [1.0]], dtype=torch.float64)
    group_B = torch.zeros(3).long()
    found = modal_advantage(
        logp_BT, advantages_BT, ones_BT, torch.tensor([1.0, 0.0, 0.5]), group_B, ["a", "b", "c"]
    )
    assert float(found["modal_advantage"]) == -2.0


def test_groups_count_once_whatever_their_size() -> None:
    correct_B = torch.tensor([True, True, True, True, False, True])
    group_B = torch.tensor([0, 0, 0, 0, 1, 2])
    shares = {name: float(x) for name, x in group_shares(correct_B, group_B).items()}
    assert shares == pytest.approx({"all_correct": 2 / 3, "all_wrong": 1 / 3, "mixed": 0.0})


def test_pieces_without_anything_to_measure_are_nan() -> None:
    ones_BT = torch.ones(2, 3)
    assert saturation(-ones_BT, ones_BT, ones_BT)["saturated_negative"].isnan()
    assert rare_correct(-ones_BT, ones_BT, torch.zeros(2).bool())["rare_correct_p"].isnan()
    assert distinct_correct(torch.zeros(2).bool(), torch.zeros(2).long(), ["a", "b"]).isnan()
