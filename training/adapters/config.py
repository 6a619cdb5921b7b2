"""What every adapter's settings have in common, and the factors an adapter starts from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rlvr_decode.matrices import LINEAR_LAYERS


class Anchors(NamedTuple):
    """The factors an adapter starts from and never leaves behind: float32, kept for good.

    A_RN  rank × in features.
    B_MR  out features × rank; None where it is zero, as in plain LoRA.
    """

    A_RN: Tensor
    B_MR: Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig(ABC):
    """How a frozen linear layer W is given a trainable low-rank update.

    y = W x + scaling · (B A − B0 A0) x: the update is what A and B have moved since their
    start, so that every adapter begins as exactly the base model.

    rank     of A and B.
    alpha    scaling is alpha / rank.
    targets  last part of the names of the linear layers to adapt; all of them must exist.
    dropout  must be 0: A0 and A see the same input or their difference is noise.

    Raises ValueError naming the setting, its value and what is permitted.
    """

    kind: ClassVar[str]
    """The adapter's name in `ADAPTERS`."""
    learning_rate: ClassVar[float]
    """The AdamW learning rate of the adapter's paper; a recipe may set another."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = LINEAR_LAYERS
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}: must be at least 1")
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha}: must be above 0; scaling is alpha / rank")
        if not self.targets:
            raise ValueError("targets=(): name at least one linear layer, such as 'q_proj'")
        if self.dropout != 0:
            raise ValueError(
                f"dropout={self.dropout}: must be 0; an adapter that starts from the base model "
                "is a difference of two products, and dropout would not cancel in it"
            )
        if "lm_head" in self.targets:
            raise ValueError(
                "targets: 'lm_head' cannot be adapted, the chunked loss reads its weight directly"
            )

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @abstractmethod
    def anchors(self, weight_MN: Tensor, *, generator: torch.Generator) -> Anchors:
        """The factors A and B start from, for one weight in float32 or float64."""
