"""MRPO: a right answer earns more when its hidden states spread over more directions.

The reward, its normalisations, and the cures for what it invites on easy prompts: in a group
whose responses are all right, rewards differ by rank alone, and dividing by their tiny standard
deviation blows that up to the size of a real lesson (*rank-chasing*). The trainer shapes rewards
with `mrpo_rewards` before `Objective.prepare`; `mrpo_advantages` is the estimator that goes with
them. `a_grae` is a neighbour that also reshapes GRPO's advantages.

Not known from the papers, so options here: the rank's normalisation, window stride and layer.
Left out: the effective rank itself (`spectral.py`) and any gradient through it.

B responses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlvr_decode.training.objectives.advantages import group_normalised
from rlvr_decode.training.objectives.groups import group_max, group_mean, group_std, is_constant

NORMALISATIONS = ("bound", "group", "batch")


def mrpo_rewards(
    correct_B: Tensor,
    rank_B: Tensor,
    lengths_B: Tensor,
    group_B: Tensor,
    *,
    alpha: float = 0.5,
    norm: str = "bound",
    window: int = 64,
    center: bool = True,
) -> Tensor:
    """R = 1[correct] · (1 + alpha · NormRank), so a wrong answer earns nothing whatever its rank.

    MRPO's shaped reward (arXiv 2602.02545) with its alpha of 0.5. `rank_B` and `lengths_B` are
    the trajectory ranks and how many tokens each was taken over, `window` and `center` as given to
    `trajectory_rank`. `norm` is one of NORMALISATIONS, see `normalised_rank`. Returns float32.
    """
    if alpha < 0:
        raise ValueError(f"alpha={alpha}: must be at least 0 (0 is the plain 0/1 reward)")
    correct_B = correct_B.bool()
    norm_B = normalised_rank(
        rank_B, lengths_B, group_B, correct_B, norm=norm, window=window, center=center
    )
    return correct_B.float() * (1 + alpha * norm_B.float())


def normalised_rank(
    rank_B: Tensor,
    lengths_B: Tensor,
    group_B: Tensor,
    correct_B: Tensor,
    *,
    norm: str = "bound",
    window: int = 64,
    center: bool = True,
) -> Tensor:
    """A trajectory's rank as a number from 0 to 1; which way, the paper does not say.

    bound   (rank − 1) / (highest possible − 1), where min(length, window) tokens can span as many
            directions, one less when centred. Needs no other response, and is fair to short ones.
    group   least to greatest among the correct responses of the same prompt.
    batch   least to greatest among all correct responses.

    Where there is nothing to compare (fewer than two different ranks; a response too short to have
    more than one direction) and, for group and batch, on wrong responses, the result is 0.
    """
    if norm not in NORMALISATIONS:
        raise ValueError(f"norm={norm!r}: must be one of {', '.join(NORMALISATIONS)}")
    if norm == "bound":
        highest_B = lengths_B.clamp(max=window) - int(center)
        return ((rank_B - 1) / (highest_B - 1).clamp(min=1)).clamp(0, 1) * (highest_B > 1)
    pool_B = group_B if norm == "group" else torch.zeros_like(group_B)
    correct_B = correct_B.bool()
    low_B = -group_max(torch.where(correct_B, -rank_B, -torch.inf), pool_B)
    high_B = group_max(torch.where(correct_B, rank_B, -torch.inf), pool_B)
    spread_B = high_B - low_B
    comparable_B = correct_B & (spread_B > 0)
    return torch.where(comparable_B, (rank_B - low_B) / spread_B, 0.0)


def mrpo_advantages(
    rewards_B: Tensor,
    group_B: Tensor,
    *,
    std_floor: float = 0.25,
    kappa: float | None = None,
    eps: float = 1e-6,
    ddof: int = 1,
) -> Tensor:
    """GRPO's advantages of MRPO's rewards, with two cures for rank-chasing.

    std_floor  A = (R − μ_G) / max(σ_G, std_floor). 0.25 is below the deviation of any mixed group
               of up to 16 right and wrong answers, so it only binds where rank alone differs;
               0 is the paper's form as far as known.
    kappa      VERL's cap (arXiv 2509.23808 uses 2): rank may move an advantage by at most
               1/kappa of what correctness alone gives it, so all-right groups teach nothing.

    `rewards_B` come from `mrpo_rewards`: positive exactly where the answer is right.
    """
    if std_floor < 0:
        raise ValueError(f"std_floor={std_floor}: must be at least 0 (0 is no floor)")
    # The mean of equal numbers can differ from them by rounding, which eps would blow up.
    equal_B = is_constant(rewards_B, group_B)
    deviation_B = (rewards_B - group_mean(rewards_B, group_B)).masked_fill(equal_B, 0)
    std_B = group_std(rewards_B, group_B, ddof=ddof).clamp(min=std_floor)
    advantages_B = deviation_B / (std_B + eps)
    if kappa is None:
        return advantages_B
    correct_B = (rewards_B > 0).to(rewards_B.dtype)
    plain_B = group_normalised(correct_B, group_B, eps=eps, ddof=ddof)
    limit_B = plain_B.abs() / _positive("kappa", kappa)
    return plain_B + (advantages_B - plain_B).clamp(-limit_B, limit_B)


def mrpo_metrics(
    advantages_B: Tensor, correct_B: Tensor, rank_B: Tensor, group_B: Tensor
) -> dict[str, float]:
    """What tells rank-chasing from learning, once per batch.

    all_correct_share  share of Σ|A| that comes from groups whose answers are all right: there only
                       rank speaks. rank_mean, rank_min over all responses; rank_correct and
                       rank_wrong are means (absent when there are none).
    """
    right_B = correct_B.to(advantages_B.dtype)
    all_correct_B = is_constant(right_B, group_B) & (right_B > 0)
    size_B = advantages_B.abs()
    total = size_B.sum()
    share = (size_B * all_correct_B).sum() / total.where(total > 0, 1)
    metrics = {"all_correct_share": share, "rank_mean": rank_B.mean(), "rank_min": rank_B.min()}
    for name, chosen_B in (("rank_correct", right_B > 0), ("rank_wrong", right_B == 0)):
        if chosen_B.any():
            metrics[name] = rank_B[chosen_B].mean()
    return {name: float(value) for name, value in metrics.items()}


def a_grae(
    rewards_B: Tensor, group_B: Tensor, *, alpha: float = 1.0, eps: float = 1e-6, ddof: int = 1
) -> Tensor:
    """A-GRAE: while answers are mostly wrong, prefer easy prompts and damp the praise.

    GRPO's advantage A of a group with accuracy q becomes, with the batch's accuracy m,
    (1 − m) · A / (2(1 − √q)) + m · A / (2√q), and positive ones are then multiplied by
    min(1, m/alpha) (arXiv 2602.05548, released code; alpha 1 for mathematics). Rewards are
    accuracies, from 0 to 1.
    """
    if rewards_B.min() < 0 or rewards_B.max() > 1:
        raise ValueError(
            f"rewards from {rewards_B.min():g} to {rewards_B.max():g}: A-GRAE reads them as "
            "accuracies, from 0 to 1; shape rewards after it or rescale them"
        )
    plain_B = group_normalised(rewards_B, group_B, eps=eps, ddof=ddof)
    root_B = group_mean(rewards_B, group_B).sqrt()
    mean = rewards_B.mean()
    mixed_B = ~is_constant(rewards_B, group_B)
    # In a group that is all right or all wrong, one of the quotients is 0/0.
    easy_B = plain_B / (2 * torch.where(mixed_B, 1 - root_B, 1.0))
    hard_B = plain_B / (2 * torch.where(mixed_B, root_B, 1.0))
    blended_B = ((1 - mean) * easy_B + mean * hard_B).where(mixed_B, 0)
    praise = (mean / _positive("alpha", alpha)).clamp(max=1)
    return torch.where(blended_B > 0, blended_B * praise, blended_B)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name}={value}: must be above 0")
    return value
