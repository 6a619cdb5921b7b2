"""What every pair is to vLLM: one model whose logits lie along the direction between two.

Legend: N tokens or rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from rlvr_decode import ops
from rlvr_decode.engine.refusals import refuse_unsupported
from rlvr_decode.engine.rows import Rows, Step, step_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from rlvr_decode.engine.model_state import PairedModelState


# Nats below rlvr's own logit: a probability of 0 in float32, but still an order.
RESERVE = 1e4


class InnerModel(Protocol):
    """What a pair asks of vLLM's own models, which vLLM types as any module."""

    def __call__(self, input_ids: Tensor, positions: Tensor) -> Tensor: ...

    def embed_input_ids(self, input_ids: Tensor) -> Tensor: ...

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None: ...


class PairModel(nn.Module):
    """Base and rlvr in one engine; `compute_logits` returns log p_rlvr + strength · Δ.

    `forward` of a subclass returns the hidden states of both side by side, [N, 2H], rlvr first:
    the runners only pick rows of them. Base runs at strength 0 too, because its KV blocks are
    shared by prefix with requests that extrapolate. Raises ValueError at start for engine
    features under which extrapolation would not be exact.
    """

    # Only safetensors are read.
    fall_back_to_pt_during_load = False

    step: Step

    def __init__(self, vllm_config: VllmConfig) -> None:
        super().__init__()
        refuse_unsupported(vllm_config)
        self.step = step_of(vllm_config)

    @abstractmethod
    def rlvr_logits(self, rlvr_NH: Tensor) -> Tensor | None:
        """Rlvr's logits [N, V]; None on ranks that do not gather them."""

    @abstractmethod
    def both_logits(self, rlvr_NH: Tensor, base_NH: Tensor) -> tuple[Tensor, Tensor] | None:
        """The logits of rlvr and of base; None on ranks that do not gather them."""

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Extrapolated logits [N, V] in fp32; None on ranks that do not gather them.

        When no row extrapolates they are rlvr's own, and base's head is not computed.
        """
        rlvr_NH, base_NH = hidden_states.chunk(2, dim=-1)
        rows = self.step.take(len(hidden_states), hidden_states.device)
        if rows is None or not rows.extrapolating:
            return self.rlvr_logits(rlvr_NH.contiguous())
        logits = self.both_logits(rlvr_NH.contiguous(), base_NH.contiguous())
        if logits is None:
            return None
        rlvr_NV, base_NV = logits
        z_NV = ops.extrapolate(rlvr_NV, base_NV, rows.strength_N, rows.plausibility_N)
        return hold_in_reserve(z_NV, rlvr_NV, base_NV, rows) if rows.cutting else z_NV

    def get_model_state_cls(self) -> type[PairedModelState]:
        from rlvr_decode.engine.model_state import PairedModelState

        return PairedModelState


def hold_in_reserve(z_NV: Tensor, rlvr_NV: Tensor, base_NV: Tensor, rows: Rows) -> Tensor:
    """Give implausible tokens a finite logit, too low to be drawn beside a plausible one.

    A grammar or another mask comes later and may forbid every plausible token; rlvr's order then
    decides among the rest, where −inf everywhere would leave nothing to draw.
    """
    common = min(rlvr_NV.shape[1], base_NV.shape[1])
    z, rlvr = z_NV[:, :common], rlvr_NV[:, :common]
    of_rows_N = (rows.strength_N > 0) & (rows.plausibility_N > 0)
    cut = z.isneginf() & ~rlvr.isneginf() & of_rows_N[:, None]
    z.copy_(torch.where(cut, rlvr - RESERVE, z))
    return z_NV
