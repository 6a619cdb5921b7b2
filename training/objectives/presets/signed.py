"""Objectives about the sign of the advantage: what right and wrong answers should count."""

from __future__ import annotations

from functools import partial

from rlvr_decode.training.objectives import advantages, policy_losses
from rlvr_decode.training.objectives.checks import clip_range, number, one_of, whole_number
from rlvr_decode.training.objectives.objective import Advantage, Objective


def psr(
    *, threshold: float = 0.5, clip_low: float = 0.2, clip_high: float = 0.2, over: str = "all"
) -> Objective:
    """PSR (Zhu et al., arXiv 2506.01347): learn from right answers only, A = 1 or 0, in PPO's
    clipped loss with token mean.

    Answers with R > threshold are right. The released code drops the others from the batch before
    averaging; over="kept" restores that scale. Left out: its entropy bonus of 1e-4 (entropy_coef).
    """
    return _signed("psr", 1.0, 0.0, threshold, clip_low, clip_high, over)


def nsr(
    *, threshold: float = 0.5, clip_low: float = 0.2, clip_high: float = 0.2, over: str = "all"
) -> Objective:
    """NSR (Zhu et al., arXiv 2506.01347): learn from wrong answers only, A = 0 or −1; keeps
    diversity, degrades in long runs. Otherwise as `psr`."""
    return _signed("nsr", 0.0, -1.0, threshold, clip_low, clip_high, over)


def w_reinforce(
    *,
    positive_weight: float = 0.1,
    threshold: float = 0.5,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    over: str = "all",
) -> Objective:
    """W-REINFORCE (Zhu et al., arXiv 2506.01347): A = positive_weight on right answers, −1 on
    wrong ones; 0 is NSR, 1 is REINFORCE, up to 0.2 reported stable. Otherwise as `psr`."""
    number("positive_weight", positive_weight, low=0.0)
    return _signed("w_reinforce", positive_weight, -1.0, threshold, clip_low, clip_high, over)


def grpo_n(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    eps: float = 1e-6,
    ddof: int = 1,
    over: str = "all",
) -> Objective:
    """GRPO-N (two-stage dynamics of RLVR, arXiv 2510.04028): GRPO's loss on the responses with a
    negative group-relative advantage, A = min((R − μ_G)/σ_G, 0).

    For A < 0 only the lower clip acts. The mean is over all N responses; whether the paper's is
    over the negative ones is not known: over="kept".
    """
    clip_range(clip_low, clip_high)
    one_of("over", over, advantages.OVER)
    return Objective(
        name="grpo_n",
        credit=Advantage(
            estimator=advantages.negative_part, options={"eps": eps, "ddof": ddof, "over": over}
        ),
        policy_loss=partial(policy_losses.clipped, clip_low=clip_low, clip_high=clip_high),
        aggregation="sequence_mean",
    )


def ngrpo(
    *,
    best: float = 1.0,
    clip_low: float = 0.16,
    clip_high: float = 0.24,
    eps: float = 1e-6,
    ddof: int = 0,
) -> Objective:
    """NGRPO (Nan et al., arXiv 2509.18851): GRPO with one imagined response of reward `best` in
    each group's statistics, so all-wrong groups teach (−1/√K each), and a clip that is tighter for
    A < 0 (clip_low) than for A > 0 (clip_high).

    Left out: the released recipe also skips all-right groups, whose advantage is 0 anyway.
    """
    clip_range(clip_low, clip_high)
    return Objective(
        name="ngrpo",
        credit=Advantage(
            estimator=advantages.virtual_best,
            options={"best": best, "eps": eps, "ddof": ddof},
        ),
        policy_loss=partial(policy_losses.clipped, clip_low=clip_low, clip_high=clip_high),
        aggregation="token_mean",
    )


def pass_at_k(
    *,
    k: int = 4,
    threshold: float = 0.5,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    eps: float = 1e-6,
) -> Objective:
    """Pass@k training (Chen et al., arXiv 2508.10751): advantages of the reward "one of k is
    right", in closed form over all k-subsets of a group; k = 1 is GRPO with ddof 0.

    The released code fixes the advantage only; loss and k here are GRPO's clip with token mean, 4.
    """
    whole_number("k", k, low=1)
    clip_range(clip_low, clip_high)
    return Objective(
        name="pass_at_k",
        credit=Advantage(
            estimator=advantages.pass_at_k,
            options={"k": k, "threshold": threshold, "eps": eps},
        ),
        policy_loss=partial(policy_losses.clipped, clip_low=clip_low, clip_high=clip_high),
        aggregation="token_mean",
    )


def _signed(
    name: str,
    right: float,
    wrong: float,
    threshold: float,
    clip_low: float,
    clip_high: float,
    over: str,
) -> Objective:
    clip_range(clip_low, clip_high)
    number("threshold", threshold)
    one_of("over", over, advantages.OVER)
    return Objective(
        name=name,
        credit=Advantage(
            estimator=advantages.signed,
            options={"right": right, "wrong": wrong, "threshold": threshold, "over": over},
        ),
        policy_loss=partial(policy_losses.clipped, clip_low=clip_low, clip_high=clip_high),
        aggregation="token_mean",
    )
