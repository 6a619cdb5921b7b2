"""What every pair is to vLLM: one model whose logits lie along the direction between two.

Legend: N tokens or rows, K of the rows that use base, H hidden size, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from rlvr_decode.engine.combine import combine
from rlvr_decode.engine.gating import Masked, draw
from rlvr_decode.engine.plain import separates_plain
from rlvr_decode.engine.prompt_rows import PromptRows, rows_of
from rlvr_decode.engine.refusals import refuse_unsupported
from rlvr_decode.engine.rows import Step, step_of
from rlvr_decode.engine.side_channel import channel_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sequence import IntermediateTensors

    from rlvr_decode.engine.model_state import PairedModelState


class InnerModel(Protocol):
    """What a pair asks of vLLM's own models, which vLLM types as any module."""

    def __call__(self, input_ids: Tensor, positions: Tensor) -> Tensor: ...

    def embed_input_ids(self, input_ids: Tensor) -> Tensor: ...

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None: ...


class PairModel(nn.Module):
    """Base and rlvr in one engine; `compute_logits` returns log p_rlvr + strength · Δ.

    `forward` returns the hidden states of both side by side, [N, 2H], rlvr first: the runners only
    pick rows of them. Base runs at strength 0 too, because its KV blocks are shared by prefix with
    requests that extrapolate; only a step of nothing but plain requests, whose blocks are shared
    with no other (see `scheduler.py`), leaves base out. Raises ValueError at start for engine
    features under which extrapolation would not be exact.
    """

    # Only safetensors are read.
    fall_back_to_pt_during_load = False

    step: Step
    shares_linear_head = False

    def __init__(self, vllm_config: VllmConfig) -> None:
        super().__init__()
        refuse_unsupported(vllm_config)
        self.step = step_of(vllm_config)
        self.separates_plain = separates_plain(vllm_config)
        self.channel = channel_of(vllm_config)
        self.prompt_rows = PromptRows(channel_of(vllm_config))

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        assert inputs_embeds is None and intermediate_tensors is None
        if not (self.separates_plain and self.step.plain):
            return self.both_hidden(input_ids, positions)
        rlvr_NH = self.rlvr_hidden(input_ids, positions)
        # Nothing reads base's half of a plain step, but the runners count on its shape.
        return torch.cat([rlvr_NH, rlvr_NH], dim=-1)

    @abstractmethod
    def both_hidden(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """The hidden states of both models [N, 2H], rlvr first."""

    @abstractmethod
    def rlvr_hidden(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Rlvr's hidden states [N, H]; base's KV cache is not written."""

    @abstractmethod
    def rlvr_logits(self, rlvr_NH: Tensor) -> Tensor | None:
        """Rlvr's logits [N, V]; None on ranks that do not gather them."""

    @abstractmethod
    def both_logits(self, rlvr_NH: Tensor, base_KH: Tensor) -> tuple[Tensor, Tensor] | None:
        """The logits of rlvr [N, V] and of base [K, V]; None on ranks that do not gather them."""

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """The logits [N, V] that the rows ask for; None on ranks that do not gather them.

        Rows that do not use base are rlvr's own, and base's head is not computed for them. Where
        the models share a linear head W, and nothing asks for more than the distribution,
        (1 + s) W r − s W b is one product, W applied to (1 + s) r − s b: cheaper than two, and in
        16 bits more exact, because the logits are rounded once instead of before their difference.
        """
        rlvr_NH, base_NH = hidden_states.chunk(2, dim=-1)
        rows = self.step.take(len(hidden_states), hidden_states.device)
        if rows is None:
            return self._prompt_logits(rlvr_NH, base_NH)
        self.prompt_rows.begin()
        if not rows.extrapolating:
            return self.rlvr_logits(rlvr_NH.contiguous())
        if rows.linear and self.shares_linear_head:
            return self.rlvr_logits(extrapolated_hidden(rlvr_NH, base_NH, rows.strength_N))
        base_KH = base_NH.contiguous() if rows.paired_K is None else base_NH[rows.paired_K]
        logits = self.both_logits(rlvr_NH.contiguous(), base_KH)
        if logits is None:
            return None
        combined_NV = combine(*logits, rows)
        if rows.gated is not None:
            draw(combined_NV, *logits, rows.gated, self.channel)
        if rows.masked is not None:
            self.step.masked = Masked(combined_NV, *logits, rows.masked)
        return combined_NV

    def _prompt_logits(self, rlvr_NH: Tensor, base_NH: Tensor) -> Tensor | None:
        """Rlvr's logits of rows of prompts; those that are scored go to their side channel too."""
        pieces = self.prompt_rows.take(len(rlvr_NH))
        if not pieces:
            return self.rlvr_logits(rlvr_NH.contiguous())
        base_KH = base_NH[rows_of(pieces, base_NH.device)]
        logits = self.both_logits(rlvr_NH.contiguous(), base_KH)
        if logits is None:
            return None
        self.prompt_rows.score(pieces, *logits)
        return logits[0]

    def get_model_state_cls(self) -> type[PairedModelState]:
        from rlvr_decode.engine.model_state import PairedModelState

        return PairedModelState


def extrapolated_hidden(rlvr_NH: Tensor, base_NH: Tensor, strength_N: Tensor) -> Tensor:
    """(1 + s) r − s b by row, computed in fp32; exactly r at strength 0 and b at −1."""
    strength_N1 = strength_N[:, None]
    return ((1 + strength_N1) * rlvr_NH - strength_N1 * base_NH).to(rlvr_NH.dtype)
