"""ProRL's hard reset: when a run stalls against its reference, the policy becomes the reference.

arXiv 2505.24864 resets the KL reference and the optimiser's state together, by hand; the triggers
here (steps, KL, flat evaluations) are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class ResetRule:
    """When to reset; every trigger is off by default.

    every      steps since the last reset.
    kl_above   KL from the reference.
    flat       that many evaluations in a row without one better than all before them.
    """

    every: int | None = None
    kl_above: float | None = None
    flat: int | None = None

    def __post_init__(self) -> None:
        for name in ("every", "kl_above", "flat"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value}: must be above 0, or absent for never")


def reset_reason(
    rule: ResetRule, *, steps: int, kl: float, evaluations: Sequence[float]
) -> str | None:
    """Why to reset now, or None. All three are counted since the last reset."""
    if rule.every is not None and steps >= rule.every:
        return f"{steps} steps"
    if rule.kl_above is not None and kl > rule.kl_above:
        return f"kl {kl:.4g}"
    if rule.flat is not None and len(evaluations) > rule.flat:
        before, last = evaluations[: -rule.flat], evaluations[-rule.flat :]
        if max(last) <= max(before):
            return f"{rule.flat} flat evaluations"
    return None


def hard_reset(policy: nn.Module, reference: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Copy the policy's weights into the reference and forget the optimisers' moments."""
    reference.load_state_dict(policy.state_dict())
    for optimizer in optimizers:
        optimizer.state.clear()
