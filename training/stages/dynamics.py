"""What a batch of rollouts tells about the stage of training, at the price of a few sums.

The two-stage view of RLVR (arXiv 2510.04028; the choice of diagnostics is ours): while a model
exploits, probability moves to what it already prefers, entropy falls, and the most frequent
answer is praised; when it explores, that answer is blamed relative to a better one and mass moves
to rarer tokens. Everything here reads tensors the step already has; nothing runs a model.
`stages.py` reads these numbers over time, `boundary.py` measures pass@k.

Legend: B responses, T tokens. `mask_BT` may hold weights instead of true and false.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from rlvr_decode.training.objectives.groups import group_max, group_sum, is_constant

# A token this likely can hardly be pushed up: the factor 1 − π of its gradient is gone.
SATURATED = 0.99


@torch.no_grad()
def batch_diagnostics(
    *,
    logp_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    rewards_B: Tensor,
    group_B: Tensor,
    answers: Sequence[Hashable],
    solutions: Sequence[Hashable],
    full_reward: float = 1.0,
    entropy_BT: Tensor | None = None,
    rank_B: Tensor | None = None,
) -> dict[str, float]:
    """Every per-batch diagnostic, as plain numbers for `metrics.jsonl`.

    logp_BT      log p of the sampled tokens under the policy that sampled them.
    answers      each response's final answer, solutions its whole text (or any key of it).
    full_reward  from here on a response counts as correct.
    entropy_BT   the policy's entropy at each token; without it, −log p of the sampled tokens
                 estimates the mean without bias.
    rank_B       trajectory ranks (`spectral.py`), if they were computed.
    """
    correct_B = rewards_B >= full_reward
    # Whatever padding holds, NaN included, it must not reach a sum: 0 · NaN is NaN.
    counted_BT = mask_BT > 0
    logp_BT, advantages_BT = (x.masked_fill(~counted_BT, 0) for x in (logp_BT, advantages_BT))
    surprise_BT = -logp_BT if entropy_BT is None else entropy_BT.masked_fill(~counted_BT, 0)
    found = {
        "token_entropy": _weighted_mean(surprise_BT, mask_BT),
        **entropy_covariances(logp_BT, advantages_BT, mask_BT),
        **saturation(logp_BT, advantages_BT, mask_BT),
        **group_shares(correct_B, group_B),
        **rare_correct(logp_BT, mask_BT, correct_B),
        **modal_advantage(logp_BT, advantages_BT, mask_BT, rewards_B, group_B, answers),
        "distinct_correct": distinct_correct(correct_B, group_B, solutions),
    }
    if rank_B is not None:
        found |= {"rank_mean": rank_B.mean(), "rank_min": rank_B.min()}
    values = torch.stack([value.double() for value in found.values()]).tolist()
    return {name: value for name, value in zip(found, values, strict=True) if value == value}


def entropy_covariances(
    logp_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor
) -> dict[str, Tensor]:
    """Whether an update sharpens the policy (positive) or moves mass to rarer tokens (negative).

    cov_logp_pi_a  Cov(log π, π · A) over the sampled tokens: minus the rate of the entropy under
                   plain policy gradient, whose logits move by π · A.
    cov_logp_a     Cov(log π, A), the same for a natural gradient; it turns later.
    """
    centred_BT = logp_BT - _weighted_mean(logp_BT, mask_BT)
    return {
        "cov_logp_pi_a": _weighted_mean(centred_BT * logp_BT.exp() * advantages_BT, mask_BT),
        "cov_logp_a": _weighted_mean(centred_BT * advantages_BT, mask_BT),
    }


def saturation(logp_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """The share of tokens above 0.99, and the share of those that are pushed down (NaN if none)."""
    saturated_BT = mask_BT * (logp_BT.exp() > SATURATED)
    return {
        "saturated": saturated_BT.sum() / mask_BT.sum(),
        "saturated_negative": _weighted_mean((advantages_BT < 0).to(logp_BT.dtype), saturated_BT),
    }


def group_shares(correct_B: Tensor, group_B: Tensor) -> dict[str, Tensor]:
    """The shares of prompts whose responses are all correct, all wrong, or mixed."""
    right_B = correct_B.to(torch.float64)
    # Each response stands for its share of the prompt, so that a sum over rows counts prompts.
    prompt_B = 1 / group_sum(torch.ones_like(right_B), group_B)
    equal_B = is_constant(right_B, group_B)
    prompts = prompt_B.sum()
    return {
        "all_correct": (prompt_B * (equal_B & correct_B)).sum() / prompts,
        "all_wrong": (prompt_B * (equal_B & ~correct_B)).sum() / prompts,
        "mixed": (prompt_B * ~equal_B).sum() / prompts,
    }


def rare_correct(logp_BT: Tensor, mask_BT: Tensor, correct_B: Tensor) -> dict[str, Tensor]:
    """The mean probability of the tokens of correct responses less likely than the median one.

    Likelihood is the mean log p per token, so that short responses are not the likely ones.
    Its growth over steps is the growth of what exploitation would starve. NaN without any.
    """
    likelihood_B = mean_logp(logp_BT, mask_BT)
    median = likelihood_B[correct_B].quantile(0.5) if correct_B.any() else torch.nan
    rare_B = correct_B & (likelihood_B < median)
    return {"rare_correct_p": _weighted_mean(logp_BT.exp(), mask_BT * rare_B[:, None])}


def modal_advantage(
    logp_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    rewards_B: Tensor,
    group_B: Tensor,
    answers: Sequence[Hashable],
) -> dict[str, Tensor]:
    """The mean advantage of each mixed group's most frequent answer: the exact stage boundary.

    Above 0 the favourite is praised (exploitation), below 0 it is blamed relative to something
    better (exploration). Equally frequent answers are settled by the likeliest response. With 0/1
    rewards the sign only says whether favourites are right. NaN without a mixed group.
    """
    likelihood_B = mean_logp(logp_BT, mask_BT)
    advantage_B = mean_logp(advantages_BT, mask_BT)
    answer_B = _ids(list(zip(group_B.tolist(), answers, strict=True)), group_B)
    count_B = group_sum(torch.ones_like(likelihood_B), answer_B)
    frequent_B = count_B == group_max(count_B, group_B)
    contender_B = likelihood_B.where(frequent_B, -torch.inf)
    leader_B = frequent_B & (contender_B == group_max(contender_B, group_B))
    modal_B = group_max(answer_B.double().where(leader_B, -1), group_B)
    led_B = (answer_B == modal_B) & ~is_constant(rewards_B, group_B)
    weight_B = led_B / group_sum(led_B.to(likelihood_B.dtype), group_B)  # each group counts once
    return {"modal_advantage": _weighted_mean(advantage_B, weight_B.nan_to_num(0))}


def distinct_correct(correct_B: Tensor, group_B: Tensor, solutions: Sequence[Hashable]) -> Tensor:
    """How many different correct solutions a prompt gets, on average over prompts that get any."""
    found: dict[int, set[Hashable]] = {}
    rows = zip(correct_B.tolist(), group_B.tolist(), solutions, strict=True)
    for correct, group, solution in rows:
        if correct:
            found.setdefault(group, set()).add(solution)
    counts = [len(distinct) for distinct in found.values()]
    return torch.tensor(sum(counts) / len(counts) if counts else torch.nan, device=group_B.device)


def mean_logp(logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """A response's mean over its counted tokens."""
    return (logp_BT * mask_BT).sum(1) / mask_BT.sum(1)


def _weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """NaN where nothing has weight."""
    return (x * weight).sum() / weight.sum()


def _ids(keys: Sequence[Hashable], like_B: Tensor) -> Tensor:
    """Equal keys get equal numbers."""
    numbers: dict[Hashable, int] = {}
    ids = [numbers.setdefault(key, len(numbers)) for key in keys]
    return torch.tensor(ids, dtype=torch.int64, device=like_B.device)
