"""Advantage estimators: how much better than expected each response was.

Pure functions of the rewards of a whole batch and the prompt each response answers; they return
one number per response, or one per token where the docstring says so. Groups may be ragged and
their rows in any order. A group whose rewards are all equal, or that has one response left, gets
0 wherever a group is compared with itself.

B responses, T tokens; R reward, K responses of a prompt, μ_G and σ_G mean and standard deviation
of its group, μ_B and σ_B those of the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlvr_decode.training.objectives.checks import one_of
from rlvr_decode.training.objectives.groups import (
    group_mean,
    group_size,
    group_std,
    group_sum,
    is_constant,
)


def reward(rewards_B: Tensor, group_B: Tensor, *, baseline: float = 0.0) -> Tensor:
    """REINFORCE: R − baseline (Williams 1992)."""
    return rewards_B - baseline


def group_normalised(
    rewards_B: Tensor, group_B: Tensor, *, eps: float = 1e-6, ddof: int = 1
) -> Tensor:
    """GRPO: (R − μ_G) / (σ_G + eps) (arXiv 2402.03300).

    The formula does not say which σ; the common implementations use the sample one (ddof 1).
    For binary rewards with group accuracy q and ddof 0: √((1−q)/q) if right, −√(q/(1−q)) if wrong.
    """
    return group_centred(rewards_B, group_B) / (group_std(rewards_B, group_B, ddof=ddof) + eps)


def group_centred(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """Dr. GRPO: R − μ_G, without the σ that favours very easy and very hard prompts
    (arXiv 2503.20783)."""
    require_groups(group_B)
    return (rewards_B - group_mean(rewards_B, group_B)).masked_fill(
        is_constant(rewards_B, group_B), 0.0
    )


def leave_one_out(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """RLOO: R minus the mean of the other responses, = (K/(K−1))·(R − μ_G) (arXiv 2402.14740)."""
    size_B = group_size(group_B).to(rewards_B.dtype)
    return group_centred(rewards_B, group_B) * size_B / (size_B - 1).clamp(min=1)


def batch_normalised(
    rewards_B: Tensor, group_B: Tensor, *, eps: float = 1e-6, ddof: int = 1
) -> Tensor:
    """Lite PPO: (R − μ_G) / (σ_B + eps), one scale for all prompts (arXiv 2508.08221)."""
    everyone_B = torch.zeros_like(group_B)
    return group_centred(rewards_B, group_B) / (group_std(rewards_B, everyone_B, ddof=ddof) + eps)


def maxrl(rewards_B: Tensor, group_B: Tensor, *, eps: float = 1e-6) -> Tensor:
    """MaxRL: (R − μ_G) / (μ_G + eps), and 0 where no response earned anything (arXiv 2602.02710).

    Rewards must not be negative: μ_G stands for the pass rate.
    """
    if bool((rewards_B < 0).any()):
        raise ValueError(f"reward {float(rewards_B.min()):g} is negative; MaxRL needs rewards ≥ 0")
    mean_B = group_mean(rewards_B, group_B)
    return group_centred(rewards_B, group_B) / (mean_B + eps).where(mean_B > 0, 1.0)


def length_weighted(rewards_B: Tensor, group_B: Tensor, *, mask_BT: Tensor) -> Tensor:
    """OPO: R − Σ|y|R / Σ|y| over the group, the variance-optimal baseline if gradient norms grow
    with length (arXiv 2505.23585). It is not zero-mean."""
    require_groups(group_B)
    length_B = mask_BT.sum(-1).to(rewards_B.dtype)
    total_B = group_sum(length_B, group_B).clamp(min=1)
    advantage_B = rewards_B - group_sum(length_B * rewards_B, group_B) / total_B
    return advantage_B.masked_fill(is_constant(rewards_B, group_B), 0.0)


def informative_share(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """GPG: α·(R − μ_G) with α = B / (B − M), M the responses in groups of equal rewards
    (arXiv 2504.02546). The mean is over all B, so α makes up for the M zeros."""
    idle = int(is_constant(rewards_B, group_B).sum())
    return group_centred(rewards_B, group_B) * (len(rewards_B) / max(len(rewards_B) - idle, 1))


def over_greedy(rewards_B: Tensor, group_B: Tensor, *, greedy_rewards_B: Tensor) -> Tensor:
    """ReMax: R minus the reward of the greedy response to the same prompt (arXiv 2310.10505)."""
    return rewards_B - greedy_rewards_B


def signed(
    rewards_B: Tensor,
    group_B: Tensor,
    *,
    right: float,
    wrong: float,
    threshold: float = 0.5,
    over: str = "all",
) -> Tensor:
    """PSR, NSR and W-REINFORCE: `right` where R > threshold, `wrong` elsewhere (arXiv 2506.01347).

    The threshold makes graded rewards binary first; taking R and R − 1 as they come would give a
    right answer with a format penalty a push down. `over` as in `mean_over`.
    """
    advantages_B = torch.full_like(rewards_B, wrong).masked_fill(rewards_B > threshold, right)
    return mean_over(advantages_B, over=over)


def negative_part(
    rewards_B: Tensor, group_B: Tensor, *, eps: float = 1e-6, ddof: int = 1, over: str = "all"
) -> Tensor:
    """GRPO-N: GRPO's advantage where it is negative, else 0 (arXiv 2510.04028).

    Unlike NSR it is 0 on groups that are all wrong, and a graded reward of 0.8 can be negative.
    For binary rewards its expected update is GRPO's times the prompt's accuracy. `over` as in
    `mean_over`; the paper does not say which it takes.
    """
    advantages_B = group_normalised(rewards_B, group_B, eps=eps, ddof=ddof).clamp(max=0.0)
    return mean_over(advantages_B, over=over)


OVER = ("all", "kept")


def mean_over(advantages_B: Tensor, *, over: str) -> Tensor:
    """Advantages whose mean over the batch is meant over "all" responses, or over those "kept".

    "kept" scales by B / (number that is not 0), as if the others had left the batch.
    """
    one_of("over", over, OVER)
    if over == "all":
        return advantages_B
    return advantages_B * (len(advantages_B) / max(int((advantages_B != 0).sum()), 1))


def virtual_best(
    rewards_B: Tensor, group_B: Tensor, *, best: float = 1.0, eps: float = 1e-6, ddof: int = 0
) -> Tensor:
    """NGRPO: GRPO with one more, imagined response of reward `best` in μ_G and σ_G.

    With ddof 0 an all-wrong group of K gets −1/√K each instead of 0; an all-right one 0
    (arXiv 2509.18851). Raises ValueError if a reward exceeds `best`.
    """
    if bool((rewards_B > best).any()):
        raise ValueError(f"reward {float(rewards_B.max()):g} exceeds best={best:g}; raise best")
    ids, index_B = torch.unique(group_B, return_inverse=True)
    with_best_B = torch.cat([rewards_B, rewards_B.new_full((len(ids),), best)])
    groups_B = torch.cat([index_B, torch.arange(len(ids), device=index_B.device)])
    advantage_B = group_centred(with_best_B, groups_B)
    return (advantage_B / (group_std(with_best_B, groups_B, ddof=ddof) + eps))[: len(rewards_B)]


def pass_at_k(
    rewards_B: Tensor, group_B: Tensor, *, k: int, threshold: float = 0.5, eps: float = 1e-6
) -> Tensor:
    """Pass@k training: each response's share in the reward of all k-subsets of its group.

    With n responses of which m are wrong, ρ = 1 − C(m,k)/C(n,k) and σ = √(ρ(1−ρ)):
    right (1−ρ)/σ, wrong (1 − ρ − C(m−1,k−1)/C(n−1,k−1))/σ (arXiv 2508.10751). Groups where
    every k-subset passes, or none, get 0, and so do groups that have lost so many responses that
    fewer than k are left. Raises ValueError if no group has k.
    """
    size_B = group_size(group_B)
    if int(size_B.max()) < k:
        raise ValueError(f"groups have {int(size_B.max())} responses; pass@{k} needs at least {k}")
    right_B = rewards_B > threshold
    wrong_B = size_B - group_sum(right_B.long(), group_B)
    advantages = [
        _pass_at_k(n, wrong, right, k, eps)
        for n, wrong, right in zip(size_B.tolist(), wrong_B.tolist(), right_B.tolist(), strict=True)
    ]
    return torch.tensor(advantages, dtype=rewards_B.dtype, device=rewards_B.device)


def _pass_at_k(n: int, wrong: int, right: bool, k: int, eps: float) -> float:
    if n < k:
        return 0.0
    fail = math.comb(wrong, k) / math.comb(n, k)
    lost = 0.0 if right else math.comb(wrong - 1, k - 1) / math.comb(n - 1, k - 1)
    return (fail - lost) / (math.sqrt(fail * (1 - fail)) + eps)


def whitened_returns(
    rewards_B: Tensor,
    group_B: Tensor,
    *,
    mask_BT: Tensor,
    old_logp_BT: Tensor | None = None,
    ref_logp_BT: Tensor | None = None,
    kl_in_reward: float = 0.0,
    centre_groups: bool = False,
    eps: float = 1e-8,
) -> Tensor:
    """REINFORCE++: returns standardised over all counted tokens of the batch, per token.

    G_t = R − kl_in_reward·Σ_{s≥t} (log π_old − log π_ref), then (G − mean)/(std + eps) with the
    sample std. With `centre_groups` R − μ_G takes R's place (arXiv 2501.03262).
    """
    if centre_groups:
        rewards_B = group_centred(rewards_B, group_B)
    returns_BT = rewards_B[:, None].expand(mask_BT.shape)
    if kl_in_reward:
        if old_logp_BT is None or ref_logp_BT is None:
            raise ValueError(f"kl_in_reward={kl_in_reward}: give old_logp_BT and ref_logp_BT")
        kl_BT = (old_logp_BT - ref_logp_BT).masked_fill(~mask_BT, 0.0)
        returns_BT = returns_BT - kl_in_reward * kl_BT.flip(-1).cumsum(-1).flip(-1)
    counted = returns_BT[mask_BT]
    if not len(counted) or bool((counted == counted[0]).all()):
        return torch.zeros_like(returns_BT)
    return (returns_BT - counted.mean()) / (counted.std() + eps)


def require_groups(group_B: Tensor) -> None:
    """ValueError if every group has a single response: nothing can be compared within a group."""
    if int(group_size(group_B).max()) < 2:
        raise ValueError("every group has one response; this objective needs at least 2 per prompt")
