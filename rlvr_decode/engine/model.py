"""The pair as one vLLM model: two sub-models run on the same tokens, one set of logits comes out.

Each sub-model is vLLM's own class with its own attention layers, so the scheduler, paged KV
cache, prefix cache and tensor parallelism serve both without knowing of a pair.
Legend: N tokens or rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model

from rlvr_decode import ops
from rlvr_decode.engine.refusals import refuse_unsupported
from rlvr_decode.engine.rows import step_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sequence import IntermediateTensors

    from rlvr_decode.engine.model_state import PairedModelState


class PairedForCausalLM(nn.Module):
    """Base and rlvr in one engine; `compute_logits` returns log p_rlvr + strength · Δ.

    The engine's model is rlvr; `engine_args` says through the config's `rlvr_…` keys which
    architecture it has and where base lies. Raises ValueError at start for engine features under
    which extrapolation would not be exact.
    """

    # Only safetensors are read.
    fall_back_to_pt_during_load = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        refuse_unsupported(vllm_config)
        config = vllm_config.model_config.hf_config
        self.step = step_of(vllm_config)
        self.rlvr = _build(vllm_config, "rlvr", config.vocab_size)
        with set_model_tag("base"):
            self.base = _build(vllm_config, "base", config.rlvr_base_vocab_size)
        self.secondary_weights = [
            DefaultModelLoader.Source(
                config.rlvr_base_model,
                revision=None,
                prefix="base.",
                fall_back_to_pt=False,
            )
        ]

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.rlvr.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of both models side by side, [N, 2H], rlvr first.

        Base runs at strength 0 too: its KV blocks are shared by prefix with requests that
        extrapolate.
        """
        assert inputs_embeds is None and intermediate_tensors is None
        rlvr_NH = self.rlvr(input_ids, positions)
        base_NH = self.base(input_ids, positions)
        return torch.cat([rlvr_NH, base_NH], dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Extrapolated logits [N, V] in fp32; None on ranks that do not gather them.

        When no row extrapolates they are rlvr's own, and base's head is not computed.
        """
        rlvr_NH, base_NH = hidden_states.chunk(2, dim=-1)
        rows = self.step.take(len(hidden_states), hidden_states.device)
        rlvr_NV = self.rlvr.compute_logits(rlvr_NH.contiguous())
        if rows is None or not rows.extrapolating:
            return rlvr_NV
        base_NV = self.base.compute_logits(base_NH.contiguous())
        if rlvr_NV is None:
            return None
        return ops.extrapolate(rlvr_NV, base_NV, rows.strength_N, rows.plausibility_N)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Rlvr's weights come first and bare, base's after them and prefixed."""
        named = ((n if n.startswith("base.") else f"rlvr.{n}", w) for n, w in weights)
        return AutoWeightsLoader(self).load_weights(named)

    def get_model_state_cls(self) -> type[PairedModelState]:
        from rlvr_decode.engine.model_state import PairedModelState

        return PairedModelState


def _build(vllm_config: VllmConfig, role: str, vocab_size: int) -> nn.Module:
    """One sub-model, its layers named after its role."""
    config = copy.deepcopy(vllm_config.model_config.hf_config)
    config.vocab_size = vocab_size
    # vLLM's compile cache is keyed by the config alone; without the role, the second model would
    # load the first one's compiled code, which is bound to the first one's KV cache.
    config.rlvr_role = role
    return init_vllm_registered_model(
        vllm_config,
        prefix=role,
        hf_config=config,
        architectures=config.rlvr_architectures,
    )
