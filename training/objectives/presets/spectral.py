"""GRPO with advantages reshaped by the geometry of trajectories, or by how easy prompts are."""

from __future__ import annotations

from functools import partial

from rlvr_decode.training.objectives import policy_losses
from rlvr_decode.training.objectives.checks import clip_range, number
from rlvr_decode.training.objectives.objective import Advantage, Objective
from rlvr_decode.training.rank import mrpo as estimators
from rlvr_decode.training.rank import verl as trends


def mrpo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    std_floor: float = 0.25,
    kappa: float | None = None,
    eps: float = 1e-6,
    ddof: int = 1,
) -> Objective:
    """MRPO (Wang et al., arXiv 2602.02545): GRPO on rewards 1[correct] · (1 + alpha · NormRank).

    The rewards come shaped: `training.mrpo.mrpo_rewards`, alpha 0.5, windows of 64. Paper: G 8,
    lr 1e-6, after one epoch of supervised training on SOE traces, without which it did not beat
    GRPO. Its clip range is not known. `std_floor` and `kappa` are cures for rank-chasing where
    every answer is right; 0 and None are the paper's form.
    """
    clip_range(clip_low, clip_high)
    options = {"std_floor": std_floor, "kappa": kappa, "eps": eps, "ddof": ddof}
    return Objective(
        name="mrpo",
        credit=Advantage(estimator=estimators.mrpo_advantages, options=options),
        policy_loss=partial(policy_losses.clipped, clip_low=clip_low, clip_high=clip_high),
        aggregation="sequence_mean",
    )


def a_grae(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    alpha: float = 1.0,
    eps: float = 1e-6,
    ddof: int = 1,
) -> Objective:
    """A-GRAE (arXiv 2602.05548): GRPO that turns from easy to hard prompts as accuracy grows, and
    damps praise while it is low. alpha 1 is the released setting for mathematics."""
    clip_range(clip_low, clip_high)
    return Objective(
        name="a_grae",
        credit=Advantage(
            estimator=estimators.a_grae, options={"alpha": alpha, "eps": eps, "ddof": ddof}
        ),
        policy_loss=partial(policy_losses.clipped, clip_low=clip_low, clip_high=clip_high),
        aggregation="sequence_mean",
    )


def verl(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kappa: float = 2.0,
    eps: float = 1e-6,
    ddof: int = 1,
) -> Objective:
    """VERL (arXiv 2509.23808): GRPO with A + min(relu(bonus), |A|/kappa), the bonus for a response
    whose effective rank is higher, or rises faster, than usual.

    Needs bonus_B, which the trainer makes (`training.verl`, section [verl] of a recipe: stride 40,
    running averages with weight 0.3). kappa 2 is the released setting.
    """
    clip_range(clip_low, clip_high)
    number("kappa", kappa, low=1e-6)
    return Objective(
        name="verl",
        credit=Advantage(
            estimator=trends.verl_advantages,
            needs=("bonus_B",),
            options={"kappa": kappa, "eps": eps, "ddof": ddof},
        ),
        policy_loss=partial(policy_losses.clipped, clip_low=clip_low, clip_high=clip_high),
        aggregation="sequence_mean",
    )
