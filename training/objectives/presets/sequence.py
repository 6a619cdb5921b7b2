"""Sequence-level ratios: one importance weight per response."""

from __future__ import annotations

from functools import partial

from rlvr_decode.training.objectives import advantages, policy_losses
from rlvr_decode.training.objectives.checks import clip_range, number, one_of
from rlvr_decode.training.objectives.objective import Advantage, Objective
from rlvr_decode.training.objectives.presets.token import group_advantage


def gspo(
    *, clip_low: float = 3e-4, clip_high: float = 4e-4, eps: float = 1e-6, ddof: int = 1
) -> Objective:
    """GSPO (Zheng et al., arXiv 2507.18071): PPO's clip on the response's ratio,

        loss = −(1/N) Σ_i min(s_i A_i, clip(s_i, …) A_i),   s_i = exp((1/|y_i|) Σ_t log r_it).

    Equals GRPO for responses of one token. Paper: 4 mini-batches per batch of rollouts, no KL.
    Equals TRL 1.16's "grpo" with importance_sampling_level="sequence"; with other aggregations
    responses would weigh by their length.
    """
    clip_range(clip_low, clip_high)
    return Objective(
        name="gspo",
        credit=group_advantage(eps=eps, ddof=ddof),
        policy_loss=partial(policy_losses.gspo, clip_low=clip_low, clip_high=clip_high),
        aggregation="sequence_mean",
    )


def gspo_token(
    *, clip_low: float = 3e-4, clip_high: float = 4e-4, eps: float = 1e-6, ddof: int = 1
) -> Objective:
    """GSPO-token (Zheng et al., arXiv 2507.18071): GSPO's value and gradient, with the ratio
    sg(s_i)·π/sg(π) per token so that tokens may have advantages of their own (reweighting)."""
    clip_range(clip_low, clip_high)
    return Objective(
        name="gspo_token",
        credit=group_advantage(eps=eps, ddof=ddof),
        policy_loss=partial(policy_losses.gspo_token, clip_low=clip_low, clip_high=clip_high),
        aggregation="sequence_mean",
    )


def gspo_n(
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    eps: float = 1e-6,
    ddof: int = 1,
    over: str = "all",
) -> Objective:
    """GSPO-N (arXiv 2510.04028): GSPO on the responses with a negative group-relative advantage
    only, see `grpo_n`."""
    clip_range(clip_low, clip_high)
    one_of("over", over, advantages.OVER)
    return Objective(
        name="gspo_n",
        credit=Advantage(
            estimator=advantages.negative_part, options={"eps": eps, "ddof": ddof, "over": over}
        ),
        policy_loss=partial(policy_losses.gspo, clip_low=clip_low, clip_high=clip_high),
        aggregation="sequence_mean",
    )


def gmpo(*, clip: float = 0.4, eps: float = 1e-6, ddof: int = 1) -> Objective:
    """GMPO (Zhao et al., arXiv 2507.20673): the geometric mean of token ratios,

        loss = −(1/N) Σ_i A_i · Π_t r̃_it^(1/|y_i|),

    with log r̃ cut to ±clip on the side that A pushes to. One outlier token cannot dominate.
    """
    number("clip", clip, low=0.0)
    return Objective(
        name="gmpo",
        credit=group_advantage(eps=eps, ddof=ddof),
        policy_loss=partial(policy_losses.gmpo, clip=clip),
        aggregation="sequence_mean",
    )


def luspo(
    *, clip_low: float = 2e-3, clip_high: float = 2.5e-3, eps: float = 1e-6, ddof: int = 1
) -> Objective:
    """LUSPO (arXiv 2602.05261): GSPO's loss times |y_i|, which undoes GSPO's bias to short
    responses: loss = −(1/N) Σ_i |y_i| min(s_i A_i, clip(s_i, …) A_i).

    Equals TRL 1.16's "luspo" with importance_sampling_level="sequence" (TRL's default "token"
    is another objective).
    """
    clip_range(clip_low, clip_high)
    return Objective(
        name="luspo",
        credit=group_advantage(eps=eps, ddof=ddof),
        policy_loss=partial(policy_losses.gspo, clip_low=clip_low, clip_high=clip_high),
        aggregation="sequence_sum",
    )


def vespo(
    *,
    k_pos: float = 2.0,
    lambda_pos: float = 3.0,
    k_neg: float = 3.0,
    lambda_neg: float = 2.0,
    eps: float = 1e-6,
    ddof: int = 1,
) -> Objective:
    """VESPO (arXiv 2602.10693): off-policy REINFORCE with a soft weight on the whole response,

        loss = −(1/Σ|y|) Σ_it sg(φ(W_i))·A_i·log π(y_it),   φ(W) = W^k e^(λ(1−W)),  W_i = Π_t r_it.

    Equals TRL 1.16's "vespo" without a rollout correction; with one, TRL multiplies it into W
    and ours multiplies the loss. TRL bounds log W below at log 1e-8, ours at −20: φ is 0 to 30
    digits at both.
    """
    for name, value in (
        ("k_pos", k_pos),
        ("lambda_pos", lambda_pos),
        ("k_neg", k_neg),
        ("lambda_neg", lambda_neg),
    ):
        number(name, value, low=0.0)
    loss = partial(
        policy_losses.vespo,
        k_pos=k_pos,
        lambda_pos=lambda_pos,
        k_neg=k_neg,
        lambda_neg=lambda_neg,
    )
    return Objective(
        name="vespo",
        credit=group_advantage(eps=eps, ddof=ddof),
        policy_loss=loss,
        aggregation="token_mean",
    )
