"""The stage detector, on the bandit's own history and on made-up ones."""

import json

import pytest
import torch

from rlvr_decode.training.stages.monitor import StageMonitor, StageSettings, weigh_positives
from rlvr_decode.training.stages.simulate import Bandit, entropy, mean_field


def follow(monitor: StageMonitor, history: list[dict[str, float]]) -> list[tuple[int, str]]:
    """The steps at which the stage changes, and to what."""
    changes, stage = [], monitor.stage
    for step, metrics in enumerate(history):
        if monitor.update(metrics) != stage:
            stage = monitor.stage
            changes.append((step, stage))
    return changes


def bandit_history(steps: int) -> list[dict[str, float]]:
    bandit = Bandit()
    path = mean_field(bandit, eta=0.1, steps=steps)
    modal_S = path.probs_SK.argmax(1)
    rewards_K = torch.tensor(bandit.rewards, dtype=torch.float64)
    return [
        {"token_entropy": h, "reward": r, "modal_advantage": float(a[m])}
        for h, r, a, m in zip(
            entropy(path.probs_SK).tolist(),
            (path.probs_SK @ rewards_K).tolist(),
            path.advantages_SK,
            modal_S.tolist(),
            strict=True,
        )
    ]


def test_the_bandit_passes_through_all_stages_in_order() -> None:
    monitor = StageMonitor(StageSettings(smoothing=1.0, patience=5, graded=True))
    changes = follow(monitor, bandit_history(1000))
    # Entropy turns at 363, the favourite's advantage at 417, the best answer leads at 725.
    assert changes == [(368, "transition"), (421, "exploration"), (730, "exploitation")]


def test_smoothing_delays_the_same_stages() -> None:
    changes = follow(StageMonitor(StageSettings(graded=True)), bandit_history(1000))
    assert [stage for _, stage in changes] == ["transition", "exploration", "exploitation"]
    assert 363 < changes[0][0] < 363 + 40 and 417 < changes[1][0] < 417 + 40


def binary(entropies: list[float], rewards: list[float]) -> list[dict[str, float]]:
    return [
        {"token_entropy": h, "reward": r, "modal_advantage": -1.0}
        for h, r in zip(entropies, rewards, strict=True)
    ]


FALL = [1 - 0.02 * s for s in range(20)]
RISE = [0.6 + 0.02 * s for s in range(40)]


def test_binary_rewards_ignore_the_favourite() -> None:
    history = binary(FALL + RISE, [0.5] * 60)
    assert follow(StageMonitor(StageSettings(smoothing=1.0)), history[:20]) == []
    monitor = StageMonitor(StageSettings(smoothing=1.0))
    # The first rise is step 21; five in a row end at 25, five more at 30.
    assert FALL[-1] > RISE[0]
    assert follow(monitor, history) == [(25, "transition"), (30, "exploration")]


def test_rising_entropy_with_falling_reward_is_no_turn() -> None:
    history = binary(FALL + RISE, [1 - 0.01 * s for s in range(60)])
    assert follow(StageMonitor(StageSettings(smoothing=1.0)), history) == []


def test_the_weight_ramps_after_the_turn_and_is_off_by_default() -> None:
    history = binary(FALL + RISE, [0.5] * 60)
    off = StageMonitor(StageSettings(smoothing=1.0))
    follow(off, history)
    assert off.positive_weight == 1.0

    on = StageMonitor(StageSettings(smoothing=1.0, positive_weight=0.1, ramp=10))
    weights = []
    for metrics in history:
        on.update(metrics)
        weights.append(on.positive_weight)
    assert weights[:25] == [1.0] * 25
    assert weights[25:36] == pytest.approx([1 - 0.09 * s for s in range(1, 11)] + [0.1])
    follow(on, binary(FALL, [0.5] * 20))
    assert (on.stage, on.positive_weight) == ("exploitation", 1.0)


def test_weighing_leaves_the_negative_ones() -> None:
    weighed = weigh_positives(torch.tensor([2.0, -1.0, 0.0]), 0.1)
    assert weighed.tolist() == pytest.approx([0.2, -1.0, 0.0])


def test_a_resumed_monitor_goes_on_as_if_never_stopped() -> None:
    history = bandit_history(800)
    whole = StageMonitor(StageSettings(graded=True, positive_weight=0.1))
    follow(whole, history)
    first = StageMonitor(StageSettings(graded=True, positive_weight=0.1))
    follow(first, history[:400])
    second = StageMonitor(StageSettings(graded=True, positive_weight=0.1))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    follow(second, history[400:])
    assert second.state == whole.state
    assert second.metrics() == whole.metrics()


def test_slopes_are_logged() -> None:
    monitor = StageMonitor(StageSettings(smoothing=0.5))
    monitor.update({"token_entropy": 1.0, "reward": 0.0, "rare_correct_p": 0.2})
    monitor.update({"token_entropy": 0.8, "reward": 0.0, "rare_correct_p": 0.4})
    found = monitor.metrics()
    assert found["token_entropy_slope"] == pytest.approx(-0.1)
    assert found["rare_correct_p_slope"] == pytest.approx(0.1)


def test_bad_settings_and_metrics_are_named() -> None:
    with pytest.raises(ValueError, match="smoothing=0"):
        StageSettings(smoothing=0)
    with pytest.raises(ValueError, match="patience=0"):
        StageSettings(patience=0)
    with pytest.raises(ValueError, match="positive_weight=2"):
        StageSettings(positive_weight=2)
    with pytest.raises(ValueError, match="lack 'reward'"):
        StageMonitor().update({"token_entropy": 1.0})
