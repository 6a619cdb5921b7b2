"""The two-stage bandit: golden turning points, closed forms, and what it must not claim."""

import json
from pathlib import Path

import pytest
import torch

from rlvr_decode.training.stages.simulate import (
    Bandit,
    entropy,
    entropy_rate,
    main,
    mean_field,
    milestones,
    reach,
    sampled,
)

PAPER = Bandit()


@pytest.mark.parametrize(
    "advantage, eta, steps, negative, least, least_at, most, most_at, entropy_at, leads",
    [
        ("grpo", 0.1, 1000, 417, 0.003135, 288, 0.99558, 356, 363, 725),
        ("grpo", 0.5, 250, 83, 0.003093, 57, 0.99565, 71, 72, 147),
        ("dr_grpo", 1.0, 2000, 901, 0.003144, 467, 0.99556, 685, 709, 1823),
    ],
)
def test_golden_turning_points(
    advantage: str,
    eta: float,
    steps: int,
    negative: int,
    least: float,
    least_at: int,
    most: float,
    most_at: int,
    entropy_at: int,
    leads: int,
) -> None:
    found = milestones(PAPER, mean_field(PAPER, eta=eta, steps=steps, advantage=advantage))
    assert found.good_negative_at == negative
    assert found.best_least == pytest.approx(least, abs=5e-7)
    assert found.best_least_at == least_at
    assert found.good_most == pytest.approx(most, abs=5e-6)
    assert found.good_most_at == most_at
    assert found.entropy_least_at == entropy_at
    assert found.best_leads_at == leads
    assert found.best_least_at < found.good_most_at < found.entropy_least_at < negative < leads


@pytest.mark.parametrize(
    "initial, crossings",
    [(0.02, (50, 147, 302, 610)), (0.002, (500, 1547, 3229, 6561)), (0.1, (11, 25, 47, 89))],
)
def test_crossing_needs_longer_for_a_rarer_or_less_better_answer(
    initial: float, crossings: tuple[int, ...]
) -> None:
    rest = (1 - initial) / 2
    for good, crossing in zip((0.5, 0.8, 0.9, 0.95), crossings, strict=True):
        bandit = Bandit(rewards=(good, 1.0, 0.0), initial=(rest, initial, rest))
        path = mean_field(bandit, eta=0.5, steps=crossing + 5)
        assert milestones(bandit, path).best_leads_at == crossing


def test_shrinkage_then_expansion_of_pass_at_8() -> None:
    path = mean_field(PAPER, eta=0.1, steps=1500)
    found_S = reach(path.probs_SK[:, PAPER.best], 8)
    assert float(found_S[0]) == pytest.approx(0.149, abs=5e-4)
    assert float(found_S[0]) == pytest.approx(1 - 0.98**8, rel=1e-12)
    # The least is 0.0248 at the minimum of its probability; at the entropy's it has begun to rise.
    assert float(found_S.min()) == pytest.approx(1 - (1 - 0.003135) ** 8, abs=5e-6)
    assert float(found_S[-1]) == pytest.approx(1.0, abs=1e-6)


def test_the_stage_boundary_is_exact() -> None:
    """The good answer's advantage is negative iff π_best (r2 − r1) > π_bad (r1 − r3)."""
    path = mean_field(PAPER, eta=0.1, steps=1000)
    good_S, best_S, bad_S = path.probs_SK.unbind(1)
    assert torch.equal(path.advantages_SK[:, 0] < 0, bad_S < best_S / 4)
    assert torch.equal(path.advantages_SK[:, 0] < 0, 0.8 * good_S + best_S > 0.8)


def test_the_entropy_rate_turns_with_the_entropy_to_the_step() -> None:
    path = mean_field(PAPER, eta=0.1, steps=1000)
    rate_S = entropy_rate(path)
    turns = ((rate_S[1:] > 0) != (rate_S[:-1] > 0)).nonzero()[:, 0] + 1
    assert turns.tolist()[-2:] == [363, 725]
    # To first order in eta it is the entropy's own difference.
    small = mean_field(PAPER, eta=1e-6, steps=10)
    differences_S = entropy(small.probs_SK).diff() / 1e-6
    torch.testing.assert_close(differences_S, entropy_rate(small)[:-1], rtol=1e-3, atol=1e-9)


def test_theorem_1_is_the_mean_of_lemma_1() -> None:
    """One mean-field update is the exact expectation of one drawn update."""
    path = mean_field(PAPER, eta=0.3, steps=1)
    pi_K, advantage_K = path.probs_SK[0], path.advantages_SK[0]
    dz_K = sum(
        pi_K[v] * 0.3 * advantage_K[v] * (torch.nn.functional.one_hot(torch.tensor(v), 3) - pi_K)
        for v in range(3)
    )
    stepped_K = (pi_K.log() + dz_K).softmax(0)
    torch.testing.assert_close(path.probs_SK[1], stepped_K, rtol=1e-12, atol=0)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
def test_grpo_n_is_grpo_with_step_q_for_right_and_wrong(q: float) -> None:
    bandit = Bandit(
        rewards=(1.0, 1.0, 0.0, 0.0), initial=(0.7 * q, 0.3 * q, 0.4 - 0.4 * q, 0.6 - 0.6 * q)
    )
    steps = {
        name: mean_field(bandit, eta=1e-3, steps=1, advantage=name).probs_SK.log().diff(dim=0)[0]
        for name in ("grpo", "grpo_n", "grpo_p")
    }
    centred = {name: step_K - step_K[0] for name, step_K in steps.items()}
    torch.testing.assert_close(centred["grpo_n"], q * centred["grpo"], rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(centred["grpo_p"], (1 - q) * centred["grpo"], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("q", [0.125, 0.5, 0.75])
def test_advantages_of_right_and_wrong_in_closed_form(q: float) -> None:
    bandit = Bandit(rewards=(1.0, 0.0), initial=(q, 1 - q))
    right, wrong = mean_field(bandit, steps=0).advantages_SK[0].tolist()
    assert right == pytest.approx(((1 - q) / q) ** 0.5, rel=1e-5)
    assert wrong == pytest.approx(-((q / (1 - q)) ** 0.5), rel=1e-5)
    # The negative mass GRPO-N learns from.
    assert (1 - q) * abs(wrong) == pytest.approx((q * (1 - q)) ** 0.5, rel=1e-5)


def test_equal_rewards_have_no_second_stage() -> None:
    bandit = Bandit(rewards=(1.0, 1.0, 0.0))
    path = mean_field(bandit, eta=0.5, steps=2000)
    found = milestones(bandit, path)
    assert found.best_leads_at is None and found.good_negative_at is None
    good_S, other_S, _ = path.probs_SK.unbind(1)
    assert float(torch.minimum(good_S, other_S)[-1]) < 0.02


@pytest.mark.parametrize("group, median", [(4, 803), (8, 534), (16, 499), (64, 459)])
def test_sampled_groups_cross_at_the_golden_times(group: int, median: int) -> None:
    """Medians of 16 runs vary by about a fifth from seed to seed."""
    best_SR = sampled(PAPER, group=group, steps=2000)[:, :, PAPER.best] > 0.5
    assert best_SR.any(0).all()
    assert float(best_SR.double().argmax(0).double().median()) == pytest.approx(median, rel=0.25)


def test_the_smallest_groups_do_not_always_cross() -> None:
    best_SR = sampled(PAPER, group=2, steps=2000)[:, :, PAPER.best] > 0.5
    assert 0.6 <= float(best_SR.any(0).double().mean()) < 1


def test_negatives_alone_stay_in_the_first_stage() -> None:
    """The toy does not support that GRPO-N expands the boundary: it only collapses later."""
    settings = {"group": 8, "runs": 24, "steps": 3000}
    negatives_SRK = sampled(PAPER, advantage="grpo_n", **settings)
    full_SRK = sampled(PAPER, advantage="grpo", **settings)
    assert float(negatives_SRK[:, :, PAPER.best].max()) < 0.5
    assert float(negatives_SRK[-1, :, PAPER.good].mean()) == pytest.approx(0.998, abs=1e-3)
    assert bool((full_SRK[:, :, PAPER.best] > 0.5).any(0).all())
    early = entropy(negatives_SRK[25]).mean() - entropy(full_SRK[25]).mean()
    assert float(early) == pytest.approx(0.583 - 0.464, abs=0.02)


def test_sampling_is_seeded() -> None:
    assert torch.equal(sampled(PAPER, steps=20, seed=3), sampled(PAPER, steps=20, seed=3))
    assert not torch.equal(sampled(PAPER, steps=20, seed=3), sampled(PAPER, steps=20, seed=4))


def test_the_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png = tmp_path / "stages.png"
    settings = ["--eta", "0.5", "--steps", "250", "--group", "8", "--runs", "3"]
    assert main([*settings, "--plot", str(png)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["entropy_least_at"], found["good_negative_at"], found["best_leads_at"]) == (
        72,
        83,
        147,
    )
    assert 0 <= found["sampled_runs_where_best_leads"] <= 1
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_command_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--initial", "0.5", "0.5"]) == 2
    assert "3 rewards and 2 probabilities" in capsys.readouterr().err


def test_bad_settings_name_the_value() -> None:
    with pytest.raises(ValueError, match="2 rewards and 3 probabilities"):
        Bandit(rewards=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"initial=\(0\.5, 0\.2, 0\.5\)"):
        Bandit(initial=(0.5, 0.2, 0.5))
    with pytest.raises(ValueError, match="advantage='ppo'"):
        mean_field(PAPER, advantage="ppo")
    with pytest.raises(ValueError, match="group=1"):
        sampled(PAPER, group=1)
