"""Arms: what is compared with what."""

import dataclasses
import json

import pytest

from rlvr_decode.evaluate.arms import Arm, control, grid, rivals
from rlvr_decode.params import Extrapolation

FAR = Extrapolation(strength=1.0, plausibility=0.05)
GATED = Extrapolation(strength=0.5, gate="delta", threshold=-0.3, primary="base")


def test_an_arm_survives_json():
    arm = Arm(extrapolation=GATED, temperature=0.3, top_p=0.7)
    assert Arm.from_dict(json.loads(json.dumps(dataclasses.asdict(arm)))) == arm


def test_rlvr_and_base_are_always_compared_and_nothing_twice():
    # Plausibility cuts nothing at strength ≤ 0 without a gate: those are one arm.
    asked = [Extrapolation(strength=s, plausibility=p) for s in (0.0, 1.0) for p in (0.0, 0.05)]
    arms = grid(asked, temperatures=[1.0, 0.0], top_p=1.0)
    labels = [arm.label for arm in arms if arm.temperature == 0]
    assert labels == ["rlvr", "base", "strength 1", "strength 1, plausibility 0.05"]
    assert len(arms) == 8


def test_a_gate_at_strength_0_is_no_plain_rlvr():
    gate = dataclasses.replace(GATED, strength=0.0, plausibility=0.05)
    [arm] = [a for a in grid([gate], temperatures=[1.0], top_p=1.0) if a.extrapolation.gated]
    assert arm.extrapolation == gate and arm != arm.rlvr
    assert arm.label == "strength 0, plausibility 0.05, gate delta at -0.3, base first"


def test_rivals_that_the_grid_has_are_not_asked_again():
    arms = grid([FAR], temperatures=[1.0, 0.3], top_p=1.0)
    found = rivals(temperatures=[0.7, 0.3], top_p=1.0, weight_strengths=[0.5], grid=arms)
    assert [(arm.label, arm.drawing) for arm in found] == [
        ("rlvr", "T=0.7"),
        ("weights at strength 0.5", "T=1"),
        ("weights at strength 0.5", "T=0.3"),
    ]


def test_arms_share_an_engine_exactly_if_they_share_checkpoints():
    arm = Arm(extrapolation=FAR)
    assert control(arm, "vocabulary").checkpoints == arm.checkpoints == arm.rlvr.checkpoints
    assert control(arm, "update").checkpoints != arm.checkpoints
    near, far = (Arm(variant="weights", weight_strength=s) for s in (0.5, 1.0))
    assert near.checkpoints != far.checkpoints
    with pytest.raises(ValueError, match="control 'reward': must be one of update, vocabulary"):
        control(arm, "reward")


def test_the_mask_alone_cuts_what_the_plausibility_cuts():
    # p ≥ 0.05 · max p, and at temperature ½ p² is what there is: 0.05² of the largest.
    arm = Arm(extrapolation=FAR, temperature=0.5)
    assert arm.masked_rlvr == Arm(temperature=0.5, min_p=arm.masked_rlvr.min_p)
    assert arm.masked_rlvr.min_p == pytest.approx(0.0025)
    assert Arm(extrapolation=FAR, temperature=0.0).masked_rlvr == Arm(temperature=0.0)


def test_what_cannot_be_drawn_from_is_no_arm():
    with pytest.raises(ValueError, match="temperature=-1"):
        Arm(temperature=-1)
    with pytest.raises(ValueError, match="top_p=0"):
        Arm(top_p=0)
