"""Token-level trust regions: GRPO and its descendants."""

from __future__ import annotations

from functools import partial

from rlvr_decode.training.objectives import advantages, policy_losses, trust_regions
from rlvr_decode.training.objectives.checks import clip_range, number, one_of
from rlvr_decode.training.objectives.objective import Advantage, Objective


def grpo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    eps: float = 1e-6,
    ddof: int = 1,
) -> Objective:
    """GRPO (Shao et al., DeepSeekMath, arXiv 2402.03300): PPO's clip with group-normalised
    advantages, every response counted the same,

        loss = −(1/N) Σ_i (1/|y_i|) Σ_t min(r_it A_i, clip(r_it, 1−clip_low, 1+clip_high) A_i),
        A_i = (R_i − μ_G)/(σ_G + eps).

    σ_G is the sample standard deviation (ddof 1) as in the common code. Left out by default: the
    paper's k3 penalty of 0.04 to a reference (kl_coef=0.04; DeepSeek-R1 has 0.001, most RLVR runs
    none), and the dual clip that verl always applies (dual_clip=3). Same as TRL 1.16's loss "grpo"
    with its eps 1e-4; TRL's "bnpo" is this with aggregation="token_mean", but normalised per
    micro-batch where ours is per batch.
    """
    return Objective(
        name="grpo",
        credit=group_advantage(eps=eps, ddof=ddof),
        policy_loss=ppo_clip(clip_low, clip_high, dual_clip),
        aggregation="sequence_mean",
    )


def dr_grpo(*, clip_low: float = 0.2, clip_high: float = 0.2, max_tokens: int = 3000) -> Objective:
    """Dr. GRPO (Liu et al., arXiv 2503.20783): GRPO without its two biases,

        loss = −(1/(N·max_tokens)) Σ_it min(r_it A_i, clip(r_it, …) A_i),   A_i = R_i − μ_G.

    Both changes matter: no σ_G, and a constant in place of |y_i|; set max_tokens to the run's
    longest response. Paper: K 8, 3000 tokens, lr 1e-6, no KL. TRL 1.16's "dr_grpo" has the
    aggregation only and keeps σ_G unless scale_rewards="none".
    """
    clip_range(clip_low, clip_high)
    return Objective(
        name="dr_grpo",
        credit=Advantage(estimator=advantages.group_centred),
        policy_loss=ppo_clip(clip_low, clip_high),
        aggregation="constant",
        max_tokens=max_tokens,
    )


def dapo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    overlong_tokens: int = 20480,
    overlong_buffer: int = 4096,
    eps: float = 1e-6,
    ddof: int = 1,
) -> Objective:
    """DAPO (Yu et al., arXiv 2503.14476): clip-higher, token mean, dynamic sampling, soft overlong
    punishment, no KL,

        loss = −(1/Σ|y|) Σ_it min(r_it A_i, clip(r_it, 1−clip_low, 1+clip_high) A_i).

    The punishment (`overlong_penalty`) is added to the rewards before advantages; overlong_buffer=0
    turns it off. `dynamic_sampling` asks the trainer to replace groups of equal scores. The
    released recipe also sets dual_clip=10, and masks truncated responses (the trainer's mask).
    TRL 1.16's default loss "dapo" is the clip and the token mean; it has no dynamic sampling.
    """
    return Objective(
        name="dapo",
        credit=group_advantage(eps=eps, ddof=ddof),
        policy_loss=ppo_clip(clip_low, clip_high, dual_clip),
        aggregation="token_mean",
        overlong_tokens=overlong_tokens,
        overlong_buffer=overlong_buffer,
        dynamic_sampling=True,
    )


def lite_ppo(
    *, clip_low: float = 0.2, clip_high: float = 0.2, eps: float = 1e-6, ddof: int = 1
) -> Objective:
    """Lite PPO (Liu et al., arXiv 2508.08221): two tricks on critic-free PPO, A = (R − μ_G)/σ_B
    with the standard deviation of the whole batch, and the token mean."""
    clip_range(clip_low, clip_high)
    return Objective(
        name="lite_ppo",
        credit=Advantage(estimator=advantages.batch_normalised, options={"eps": eps, "ddof": ddof}),
        policy_loss=ppo_clip(clip_low, clip_high),
        aggregation="token_mean",
    )


def cispo(*, cap: float = 5.0, eps: float = 1e-6, ddof: int = 1) -> Objective:
    """CISPO (MiniMax-M1, arXiv 2506.13585): clip the weight, not the gradient,

        loss = −(1/Σ|y|) Σ_it sg(min(r_it, cap))·A_i·log π(y_it).

    `cap` is the ratio itself, not its distance from 1; libraries differ (TRL's epsilon_high is the
    ratio too, verl's clip_high is the distance). 5 is ScaleRL's (arXiv 2510.13786); no lower bound.
    Equals TRL 1.16's "cispo" with epsilon_high=cap.
    """
    number("cap", cap)
    if cap <= 1:
        raise ValueError(f"cap={cap!r} is a ratio and must exceed 1, or every weight is cut")
    return Objective(
        name="cispo",
        credit=group_advantage(eps=eps, ddof=ddof),
        policy_loss=partial(policy_losses.cispo, cap=cap),
        aggregation="token_mean",
    )


def sapo(
    *,
    temperature_pos: float = 1.0,
    temperature_neg: float = 1.05,
    eps: float = 1e-6,
    ddof: int = 1,
) -> Objective:
    """SAPO (Gao et al., arXiv 2511.20347): a sigmoid gate instead of a clip,

        loss = −(1/N) Σ_i (1/|y_i|) Σ_t (4/τ)·σ(τ(r_it − 1))·A_i,  τ by the sign of A_i.

    Its gradient at r = 1 is A; the gate fades both ways, faster for A < 0. Equals TRL 1.16's
    "sapo" to 1e-8 (which rounds 1.05 to float32).
    """
    for name, value in (("temperature_pos", temperature_pos), ("temperature_neg", temperature_neg)):
        number(name, value, low=1e-6)
    loss = partial(
        policy_losses.sapo, temperature_pos=temperature_pos, temperature_neg=temperature_neg
    )
    return Objective(
        name="sapo",
        credit=group_advantage(eps=eps, ddof=ddof),
        policy_loss=loss,
        aggregation="sequence_mean",
    )


def dppo_tv(*, limit: float = 0.15, cap: float = 20.0, anchor: str = "rollout") -> Objective:
    """DPPO-Binary-TV (Qi et al., arXiv 2602.04879): mask a token that A has already pushed by more
    than `limit` in probability, |π − μ| > limit; loss −sg(min(r, cap))·A·log π, token mean.

    μ and r refer to the policy that sampled: anchor "rollout" needs rollout_logp_BT; "old" takes
    the trainer's own. Paper and code: 0.15 to 0.2, ratio cap 20.
    """
    return _dppo("tv", limit, cap, anchor)


def dppo_kl(*, limit: float = 0.05, cap: float = 20.0, anchor: str = "rollout") -> Objective:
    """DPPO-Binary-KL (Qi et al., arXiv 2602.04879): DPPO with KL(μ‖π) > limit of the coin "this
    token or another" in place of |π − μ| > limit."""
    return _dppo("kl", limit, cap, anchor)


def clip_cov(
    *, fraction: float = 2e-4, low: float = 1.0, high: float = 5.0, clip: float = 1.0
) -> Objective:
    """Clip-Cov (Cui et al., arXiv 2505.22617): GRPO with token mean, and no gradient on a random
    `fraction` of all tokens (at least one) whose covariance of advantage and log-probability lies
    in (low, high): the tokens that drain entropy. PPO's clip is widened to ±clip.

    The draw uses torch's global generator, once per batch of rollouts; the covariance is that of
    the policy that sampled.
    """
    number("fraction", fraction, low=0.0, high=1.0)
    clip_range(clip, clip)
    number("low", low)
    number("high", high)
    if not low < high:
        raise ValueError(f"low={low!r} must be below high={high!r}")
    return Objective(
        name="clip_cov",
        credit=group_advantage(),
        policy_loss=partial(trust_regions.clip_cov, clip_low=clip, clip_high=clip),
        selection=partial(trust_regions.select_random, fraction=fraction, low=low, high=high),
        aggregation="token_mean",
    )


def kl_cov(*, fraction: float = 2e-3, coef: float = 1.0) -> Objective:
    """KL-Cov (Cui et al., arXiv 2505.22617): −rA without clip, and coef·|log r| on the `fraction`
    of tokens (at least one) with the largest covariance of advantage and log-probability.

    0.002 is the 7B setting, 0.0002 the 32B one; a fraction here, where the released code counts in
    percent and others in parts of one. lr 5e-7 (7B) or 1e-6.
    """
    number("fraction", fraction, low=0.0, high=1.0)
    number("coef", coef, low=0.0)
    return Objective(
        name="kl_cov",
        credit=group_advantage(),
        policy_loss=partial(trust_regions.kl_cov, coef=coef),
        selection=partial(trust_regions.select_largest, fraction=fraction),
        aggregation="token_mean",
    )


def group_advantage(*, eps: float = 1e-6, ddof: int = 1) -> Advantage:
    """GRPO's advantage, with its options checked."""
    number("eps", eps, low=0.0)
    one_of("ddof", ddof, (0, 1))
    return Advantage(estimator=advantages.group_normalised, options={"eps": eps, "ddof": ddof})


def ppo_clip(
    clip_low: float, clip_high: float, dual_clip: float | None = None
) -> partial[policy_losses.Surrogate]:
    """PPO's clipped loss, with its options checked."""
    clip_range(clip_low, clip_high)
    if dual_clip is not None:
        number("dual_clip", dual_clip)
        if not dual_clip > 1 + clip_high:
            raise ValueError(f"dual_clip={dual_clip!r} must exceed 1 + clip_high")
    return partial(
        policy_losses.clipped, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )


def _dppo(divergence: str, limit: float, cap: float, anchor: str) -> Objective:
    number("limit", limit, low=0.0)
    number("cap", cap, low=1.0)
    one_of("anchor", anchor, ("rollout", "old"))
    loss = partial(trust_regions.dppo, divergence=divergence, limit=limit, cap=cap, anchor=anchor)
    return Objective(
        name=f"dppo_{divergence}",
        credit=group_advantage(),
        policy_loss=loss,
        aggregation="token_mean",
        reads=("rollout_logp_BT",) if anchor == "rollout" else (),
    )
