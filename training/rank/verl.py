"""VERL: praise what explores or exploits more than usual, told from ranks as a response grows.

The effective rank of a response's hidden states, read every few tokens, has a level, a speed and
an acceleration. Their deviations from running averages make a bonus on GRPO's advantages, capped
by the advantage itself, so a group without a lesson gets none (arXiv 2509.23808, released code).
`trends.py` is its part in the loop.

B responses, W readings of a response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from rlvr_decode.training.objectives.advantages import group_normalised


@dataclass(frozen=True, kw_only=True, slots=True)
class RankTrend:
    """A response's effective rank as it grows: level, mean speed, mean acceleration.

    VERL's ER, ERV and ERA, as scalars, or as a batch's running averages.
    """

    level: float
    speed: float
    acceleration: float

    @classmethod
    def of(cls, ranks_W: Tensor) -> RankTrend:
        """Of one response's `prefix_ranks`; speeds need two readings, accelerations three."""
        speed_W = ranks_W.diff()
        acceleration_W = speed_W.diff()
        return cls(
            level=float(ranks_W[-1]),
            speed=float(speed_W.mean()) if len(speed_W) else 0.0,
            acceleration=float(acceleration_W.mean()) if len(acceleration_W) else 0.0,
        )

    @classmethod
    def mean(cls, batch: Sequence[RankTrend]) -> RankTrend:
        """The mean of a batch."""
        return cls(
            level=fmean(trend.level for trend in batch),
            speed=fmean(trend.speed for trend in batch),
            acceleration=fmean(trend.acceleration for trend in batch),
        )

    def averaged(self, newest: RankTrend, *, decay: float = 0.3) -> RankTrend:
        """These running averages after one more; `decay` is the weight of the newest."""
        return RankTrend(
            level=self.level + decay * (newest.level - self.level),
            speed=self.speed + decay * (newest.speed - self.speed),
            acceleration=self.acceleration + decay * (newest.acceleration - self.acceleration),
        )


def verl_bonus(trends: Sequence[RankTrend], usual: RankTrend, *, gain: float = 1.0) -> Tensor:
    """How much each response explores (rank) or exploits (speed of rank) beyond the usual.

    tanh of the relative deviations from the running averages, the exploring part weighted by
    sigmoid(gain · deviation of the acceleration) and the exploiting part by the rest. Which part
    gets which weight, and the gain, are our reading. Returns bonus_B for `capped_bonus`.
    """
    values_B3 = torch.tensor([[t.level, t.speed, t.acceleration] for t in trends])
    usual_3 = torch.tensor([usual.level, usual.speed, usual.acceleration])
    explore_B, exploit_B, turn_B = ((values_B3 - usual_3) / (usual_3.abs() + 1e-6)).unbind(1)
    weight_B = torch.sigmoid(gain * turn_B)
    return weight_B * explore_B.tanh() + (1 - weight_B) * exploit_B.tanh()


def capped_bonus(advantages_B: Tensor, bonus_B: Tensor, *, kappa: float = 2.0) -> Tensor:
    """A + min(relu(bonus), |A| / kappa); kappa 2 is the paper's."""
    if not kappa > 0:
        raise ValueError(f"kappa={kappa}: must be above 0")
    return advantages_B + torch.minimum(bonus_B.clamp(min=0), advantages_B.abs() / kappa)


def verl_advantages(
    rewards_B: Tensor,
    group_B: Tensor,
    *,
    bonus_B: Tensor,
    kappa: float = 2.0,
    eps: float = 1e-6,
    ddof: int = 1,
) -> Tensor:
    """GRPO's advantages with the capped bonus of each response."""
    plain_B = group_normalised(rewards_B, group_B, eps=eps, ddof=ddof)
    return capped_bonus(plain_B, bonus_B.to(plain_B.dtype), kappa=kappa)
