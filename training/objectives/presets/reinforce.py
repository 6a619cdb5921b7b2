"""Policy gradients with better baselines: REINFORCE and what became of it."""

from __future__ import annotations

from functools import partial

from rlvr_decode.training.objectives import advantages, policy_losses
from rlvr_decode.training.objectives.checks import clip_range, number
from rlvr_decode.training.objectives.objective import Advantage, Objective


def reinforce(*, baseline: float = 0.0) -> Objective:
    """REINFORCE (Williams 1992): loss = −(1/N) Σ_i (R_i − baseline) Σ_t log π(y_it).

    One response per prompt is enough. On-policy only: there is no ratio, so one optimiser step
    per batch of rollouts.
    """
    number("baseline", baseline)
    return Objective(
        name="reinforce",
        credit=Advantage(estimator=advantages.reward, options={"baseline": baseline}),
        policy_loss=policy_losses.reinforce,
        aggregation="sequence_sum",
    )


def rloo() -> Objective:
    """RLOO (Ahmadian et al., arXiv 2402.14740): REINFORCE with the mean of the other K − 1
    responses as baseline, loss = −(1/N) Σ_i A_i Σ_t log π(y_it), A = (K/(K−1))·(R − μ_G).

    Paper: K 2 to 4, lr 1e-6. Left out: its KL penalty of 0.03 inside the reward, which belongs to
    learnt reward models (subtract it from rewards_B to have it), and the ratio clipping that
    libraries add to it.
    """
    return Objective(
        name="rloo",
        credit=Advantage(estimator=advantages.leave_one_out),
        policy_loss=policy_losses.reinforce,
        aggregation="sequence_sum",
    )


def remax() -> Objective:
    """ReMax (Li et al., arXiv 2310.10505): loss = −(1/N) Σ_i (R_i − R_greedy) Σ_t log π(y_it).

    Needs greedy_rewards_B: one more, greedy, response per prompt. One sampled response per prompt
    is enough. Left out: the KL penalty inside the reward.
    """
    return Objective(
        name="remax",
        credit=Advantage(estimator=advantages.over_greedy, needs=("greedy_rewards_B",)),
        policy_loss=policy_losses.reinforce,
        aggregation="sequence_sum",
    )


def opo() -> Objective:
    """OPO (Hao et al., arXiv 2505.23585): loss = −(1/N) Σ_i (R_i − b) Σ_t log π(y_it) with the
    length-weighted baseline b = Σ|y|R / Σ|y| of the group.

    Exact on-policy training is half of the method: one optimiser step per batch of rollouts; no
    KL, no entropy bonus.
    """
    return Objective(
        name="opo",
        credit=Advantage(estimator=advantages.length_weighted, needs=("mask_BT",)),
        policy_loss=policy_losses.reinforce,
        aggregation="sequence_sum",
    )


def gpg() -> Objective:
    """GPG (Chu et al., arXiv 2504.02546): loss = −(1/Σ|y|) Σ_it α·(R_i − μ_G)·log π(y_it) with
    α = B/(B − M), M the responses in groups of equal rewards; no ratio, no KL.

    α follows the paper; verl's is B over the number of scores that are not 0, another quantity.
    Left out: resampling when fewer than 60 % of the responses are informative (the trainer's
    dynamic sampling does it for every such group).
    """
    return Objective(
        name="gpg",
        credit=Advantage(estimator=advantages.informative_share),
        policy_loss=policy_losses.reinforce,
        aggregation="token_mean",
    )


def reinforce_pp(
    *, clip_low: float = 0.2, clip_high: float = 0.2, kl_in_reward: float = 0.0
) -> Objective:
    """REINFORCE++ (Hu, arXiv 2501.03262): PPO's clip, advantages whitened over all tokens of the
    batch, A_it = (G_it − mean)/std, G_it = R_i − kl_in_reward·Σ_{s≥t} (log π_old − log π_ref).

    One response per prompt is enough. With `kl_in_reward` > 0 it needs ref_logp_BT.
    Left out: discounting (γ = 1) and a critic.
    """
    number("kl_in_reward", kl_in_reward, low=0.0)
    needs = ("ref_logp_BT",) if kl_in_reward else ()
    return _plus_plus("reinforce_pp", clip_low, clip_high, kl_in_reward, needs)


def reinforce_pp_baseline(*, clip_low: float = 0.2, clip_high: float = 0.2) -> Objective:
    """REINFORCE++-baseline (Hu, arXiv 2501.03262): the same with R − μ_G in place of R.

    The paper adds a k2 penalty to a reference: kl_coef=…, kl_estimator="k2".
    """
    return _plus_plus("reinforce_pp_baseline", clip_low, clip_high, 0.0, (), centre_groups=True)


def maxrl(*, clip_low: float = 0.2, clip_high: float = 0.2, eps: float = 1e-6) -> Objective:
    """MaxRL (Tajwar et al., arXiv 2602.02710): PPO's clip with A = (R − μ_G)/(μ_G + eps).

    Dividing by the pass rate p turns the gradient of E[R] = p into that of the first K − 1 terms of
    log p = −Σ_k (1−p)^k/k, so hard prompts weigh more. (Without centring it would be K terms: the
    all-wrong groups, which get 0, cost the last one.) Rewards must not be negative. Paper's recipe
    for Qwen3: one epoch, gradient norm cut at 0.3; token mean as in its code.
    """
    clip_range(clip_low, clip_high)
    return Objective(
        name="maxrl",
        credit=Advantage(estimator=advantages.maxrl, options={"eps": eps}),
        policy_loss=partial(policy_losses.clipped, clip_low=clip_low, clip_high=clip_high),
        aggregation="token_mean",
    )


def _plus_plus(
    name: str,
    clip_low: float,
    clip_high: float,
    kl_in_reward: float,
    needs: tuple[str, ...],
    *,
    centre_groups: bool = False,
) -> Objective:
    clip_range(clip_low, clip_high)
    return Objective(
        name=name,
        credit=Advantage(
            estimator=advantages.whitened_returns,
            needs=("mask_BT", "old_logp_BT", *needs),
            options={"kl_in_reward": kl_in_reward, "centre_groups": centre_groups},
        ),
        policy_loss=partial(policy_losses.clipped, clip_low=clip_low, clip_high=clip_high),
        aggregation="token_mean",
    )
