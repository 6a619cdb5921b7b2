"""The two stages of RLVR on one decision with three answers: a simulator and its picture.

One softmax over K answers is trained by exact or sampled group-relative policy gradient
(arXiv 2510.04028's toy: a good answer worth 0.8, a best one worth 1 that is almost never drawn, a
bad one). First the good answer takes everything and the best one shrinks (exploitation); when it
has nearly everything, mean reward passes its own, its advantage turns negative, and the best one
grows at its expense (exploration). The paper does not give initial probabilities, step size or
group size; the defaults here are ours and reproduce its order of events.

What this toy does not show: that negatives alone (GRPO-N) expand the boundary. Here they never
reach the second stage, because a saturated answer is pushed by a factor 1 − π. Nor is there any
second stage when good and best are worth the same, as with a 0/1 reward.

Legend: S steps, R runs, K answers, G group.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_EPS = 1e-6

# From rewards' deviations from their mean, and their standard deviation, to advantages.
ADVANTAGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grpo": lambda centred, std: centred / (std + _EPS),
    "dr_grpo": lambda centred, std: centred,
    "grpo_n": lambda centred, std: (centred / (std + _EPS)).clamp(max=0),
    "grpo_p": lambda centred, std: (centred / (std + _EPS)).clamp(min=0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bandit:
    """One decision: what each answer is worth, and how likely it is before training."""

    rewards: tuple[float, ...] = (0.8, 1.0, 0.0)
    initial: tuple[float, ...] = (0.49, 0.02, 0.49)

    def __post_init__(self) -> None:
        if len(self.rewards) != len(self.initial) or len(self.rewards) < 2:
            raise ValueError(
                f"{len(self.rewards)} rewards and {len(self.initial)} probabilities: "
                "give as many of one as of the other, at least 2"
            )
        if min(self.initial) <= 0 or abs(sum(self.initial) - 1) > 1e-6:
            raise ValueError(f"initial={self.initial}: must be above 0 and sum to 1")

    @property
    def best(self) -> int:
        """The answer that is worth most; of several, the least likely."""
        answers = range(len(self.rewards))
        return max(answers, key=lambda k: (self.rewards[k], -self.initial[k]))

    @property
    def good(self) -> int:
        """The answer that is worth most of the others."""
        others = [k for k in range(len(self.rewards)) if k != self.best]
        return max(others, key=lambda k: self.rewards[k])


class MeanField(NamedTuple):
    """Before update s: the answers' probabilities probs_SK[s] and advantages_SK[s], float64."""

    probs_SK: Tensor
    advantages_SK: Tensor


class Milestones(NamedTuple):
    """When the stages turn, as numbers of updates; None where it has not happened.

    best_least, best_least_at   the least probability of the best answer before it takes over.
    good_most, good_most_at     the greatest probability of the good answer.
    entropy_least_at            the entropy's minimum between the two.
    good_negative_at            first time the good answer's advantage is below 0: the exact end of
                                exploitation, when mean reward exceeds the good answer's.
    best_leads_at               first time the best answer has more than half.
    """

    best_least: float
    best_least_at: int
    good_most: float
    good_most_at: int
    entropy_least_at: int
    good_negative_at: int | None
    best_leads_at: int | None


def mean_field(
    bandit: Bandit, *, eta: float = 0.1, steps: int = 1000, advantage: str = "grpo"
) -> MeanField:
    """Training with exact expectations: logit v moves by eta · π_v (A_v − Σ π_u A_u).

    Theorem 1 of arXiv 2510.04028; A are population advantages, so nothing is random. `advantage`
    is a key of ADVANTAGES.
    """
    estimate = _advantage(advantage)
    rewards_K = torch.tensor(bandit.rewards, dtype=torch.float64)
    logits_K = torch.tensor(bandit.initial, dtype=torch.float64).log()
    probs, advantages = [], []
    for _ in range(steps + 1):
        pi_K = logits_K.softmax(0)
        centred_K = rewards_K - pi_K @ rewards_K
        advantage_K = estimate(centred_K, (pi_K @ centred_K.square()).sqrt())
        probs.append(pi_K)
        advantages.append(advantage_K)
        logits_K = logits_K + eta * pi_K * (advantage_K - pi_K @ advantage_K)
    return MeanField(torch.stack(probs), torch.stack(advantages))


def sampled(
    bandit: Bandit,
    *,
    group: int = 8,
    runs: int = 16,
    eta: float = 0.1,
    steps: int = 1000,
    advantage: str = "grpo",
    seed: int = 0,
) -> Tensor:
    """The same with `group` draws per update, in `runs` independent runs: probs_SRK, float64.

    One drawn answer v with advantage A moves its own logit by eta · A (1 − π_v) / group and every
    other by −eta · A π_u / group (Lemma 1); the deviation is the group's population one.
    """
    if group < 2:
        raise ValueError(f"group={group}: an advantage compares at least 2 draws")
    estimate = _advantage(advantage)
    generator = torch.Generator().manual_seed(seed)
    rewards_K = torch.tensor(bandit.rewards, dtype=torch.float64)
    logits_RK = torch.tensor(bandit.initial, dtype=torch.float64).log().repeat(runs, 1)
    probs = []
    for _ in range(steps + 1):
        pi_RK = logits_RK.softmax(1)
        probs.append(pi_RK)
        drawn_RG = torch.multinomial(pi_RK, group, replacement=True, generator=generator)
        rewards_RG = rewards_K[drawn_RG]
        centred_RG = rewards_RG - rewards_RG.mean(1, keepdim=True)
        advantage_RG = estimate(centred_RG, rewards_RG.std(1, correction=0, keepdim=True))
        push_RK = torch.zeros_like(pi_RK).scatter_add(1, drawn_RG, advantage_RG)
        logits_RK = logits_RK + eta / group * (push_RK - pi_RK * advantage_RG.sum(1, keepdim=True))
    return torch.stack(probs)


def milestones(bandit: Bandit, path: MeanField) -> Milestones:
    """The turning points of a mean-field run."""
    best_S, good_S = path.probs_SK[:, bandit.best], path.probs_SK[:, bandit.good]
    leads_at = _first(best_S > 0.5)
    until = len(best_S) if leads_at is None else leads_at
    return Milestones(
        best_least=float(best_S.min()),
        best_least_at=int(best_S.argmin()),
        good_most=float(good_S.max()),
        good_most_at=int(good_S.argmax()),
        entropy_least_at=int(entropy(path.probs_SK[:until]).argmin()),
        good_negative_at=_first(path.advantages_SK[:, bandit.good] < 0),
        best_leads_at=leads_at,
    )


def entropy(probs_SK: Tensor) -> Tensor:
    """The entropy of the answers before each update, in nats."""
    total: Tensor = torch.special.entr(probs_SK).sum(-1)
    return total


def entropy_rate(path: MeanField) -> Tensor:
    """How fast entropy changes to first order in eta: −Cov_{v∼π}(log π_v, dz_v / eta).

    dz from Theorem 1. Positive is exploration; its first sign change is the entropy minimum.
    """
    probs_SK, advantages_SK = path
    mean_S1 = (probs_SK * advantages_SK).sum(1, keepdim=True)
    dz_SK = probs_SK * (advantages_SK - mean_S1)
    logp_SK = probs_SK.log()
    centred_SK = logp_SK - (probs_SK * logp_SK).sum(1, keepdim=True)
    covariance_S: Tensor = (probs_SK * centred_SK * dz_SK).sum(1)
    return -covariance_S


def reach(probability: Tensor, k: int) -> Tensor:
    """pass@k of an answer with that probability: it is drawn at least once in k."""
    missed: Tensor = torch.expm1(k * torch.log1p(-probability))
    return -missed


def main(argv: Sequence[str] | None = None) -> int:
    """Print a run's turning points as JSON, draw it if asked; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="rlvr-decode simulate",
        description="The two stages of RLVR on one decision: shrinkage, then expansion.",
    )
    default = Bandit()
    parser.add_argument("--rewards", type=float, nargs="+", default=default.rewards)
    parser.add_argument("--initial", type=float, nargs="+", default=default.initial)
    parser.add_argument("--eta", type=float, default=0.1, help="step size on the logits")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--advantage", choices=sorted(ADVANTAGES), default="grpo")
    parser.add_argument("--group", type=int, help="also train on this many draws per update")
    parser.add_argument("--runs", type=int, default=16, help="sampled runs (with --group)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the run here")
    args = parser.parse_args(argv)
    try:
        bandit = Bandit(rewards=tuple(args.rewards), initial=tuple(args.initial))
        settings = {"eta": args.eta, "steps": args.steps, "advantage": args.advantage}
        path = mean_field(bandit, **settings)
        found = milestones(bandit, path)._asdict()
        runs_SRK = None
        if args.group is not None:
            runs_SRK = sampled(bandit, group=args.group, runs=args.runs, seed=args.seed, **settings)
            leads_SR = runs_SRK[:, :, bandit.best] > 0.5
            found["sampled_runs_where_best_leads"] = float(leads_SR.any(0).double().mean())
    except ValueError as error:
        print(f"rlvr-decode simulate: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2))
    if args.plot:
        # Matplotlib takes a second to import, and only a picture needs it.
        from rlvr_decode.training.stages.simulate_plot import draw

        draw(bandit, path, runs_SRK, args.plot)
    return 0


def _advantage(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    if name not in ADVANTAGES:
        raise ValueError(f"advantage={name!r}: must be one of {', '.join(ADVANTAGES)}")
    return ADVANTAGES[name]


def _first(happens_S: Tensor) -> int | None:
    when = happens_S.nonzero()
    return int(when[0]) if len(when) else None
