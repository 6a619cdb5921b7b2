"""Objectives pinned to the settings of their papers; every knob is an option."""

from __future__ import annotations

from functools import partial

from rlvr_decode.training import advantages
from rlvr_decode.training.objectives import policy_losses
from rlvr_decode.training.objectives.objective import Advantage, Objective


def grpo(
    *, clip_low: float = 0.2, clip_high: float = 0.2, eps: float = 1e-6, ddof: int = 1
) -> Objective:
    """GRPO (DeepSeekMath, arXiv 2402.03300)."""
    return Objective(
        name="grpo",
        credit=Advantage(estimator=advantages.group_normalised, options={"eps": eps, "ddof": ddof}),
        policy_loss=partial(policy_losses.clipped, clip_low=clip_low, clip_high=clip_high),
        aggregation="sequence_mean",
    )
