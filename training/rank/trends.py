"""VERL's bonus in the loop: how ranks grow in a batch, against the batches before it.

B responses, T tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from rlvr_decode.training.rank.ranks import hidden_parts
from rlvr_decode.training.rank.spectral import prefix_ranks
from rlvr_decode.training.rank.verl import RankTrend, verl_bonus
from rlvr_decode.training.rollout.rollout import Rollouts


@dataclass(frozen=True, kw_only=True, slots=True)
class TrendSettings:
    """How ranks are read. stride and decay are the paper's; gain and layer are not known."""

    stride: int = 40
    """Tokens from one reading to the next."""
    decay: float = 0.3
    """Weight of the newest batch in the running averages, in (0, 1]."""
    gain: float = 1.0
    """How sharply acceleration turns the bonus from exploiting to exploring."""
    layer: int = -1
    """As `output_hidden_states` counts; −1 is the last, after the final norm."""
    rows: int = 64
    """Responses per part."""

    def __post_init__(self) -> None:
        if self.stride < 1 or self.rows < 1:
            raise ValueError(f"stride={self.stride}, rows={self.rows}: must be at least 1")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay={self.decay}: must be above 0 and at most 1")


class Trends:
    """Makes the bonus of each batch, and remembers what is usual."""

    def __init__(self, settings: TrendSettings) -> None:
        self.settings = settings
        self.usual: RankTrend | None = None

    def bonus(self, model: PreTrainedModel, rollouts: Rollouts) -> Tensor:
        """bonus_B of a batch against the batches before it, or the first one against itself."""
        trends = [
            RankTrend.of(prefix_ranks(hidden_TD[mask_T], stride=self.settings.stride))
            for hidden_bTD, mask_bT in hidden_parts(
                model, rollouts, layer=self.settings.layer, rows=self.settings.rows
            )
            for hidden_TD, mask_T in zip(hidden_bTD, mask_bT, strict=True)
        ]
        mean = RankTrend.mean(trends)
        usual = mean if self.usual is None else self.usual
        self.usual = usual.averaged(mean, decay=self.settings.decay)
        return verl_bonus(trends, usual, gain=self.settings.gain)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {} if self.usual is None else {"usual_rank": asdict(self.usual)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state, if it has any."""
        if "usual_rank" in state:
            self.usual = RankTrend(**state["usual_rank"])
