"""Two full checkpoints as one vLLM model: two sub-models run on the same tokens.

Each is vLLM's own class with its own attention layers, so the scheduler, paged KV cache, prefix
cache and tensor parallelism serve both without knowing of a pair.
Legend: N tokens or rows, K of the rows that use base, H hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from vllm.compilation.backends import set_model_tag
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model

from rlvr_decode.engine.packing import pack_layers, tell_compile_cache
from rlvr_decode.engine.pair_model import InnerModel, PairModel

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class PairedForCausalLM(PairModel):
    """The engine's model is rlvr; the config's `rlvr_…` keys say its class and where base lies."""

    rlvr: InnerModel
    base: InnerModel

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config)
        tell_compile_cache(vllm_config)
        config = vllm_config.model_config.hf_config
        self.rlvr = _build(vllm_config, "rlvr", config.vocab_size)
        with set_model_tag("base"):
            self.base = _build(vllm_config, "base", config.rlvr_base_vocab_size)
        self.secondary_weights = [
            DefaultModelLoader.Source(
                config.rlvr_base_model, revision=None, prefix="base.", fall_back_to_pt=False
            )
        ]

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.rlvr.embed_input_ids(input_ids)

    def both_hidden(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        rlvr_NH = self.rlvr(input_ids, positions)
        base_NH = self.base(input_ids, positions)
        return torch.cat([rlvr_NH, base_NH], dim=-1)

    def rlvr_hidden(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.rlvr(input_ids, positions)

    def rlvr_logits(self, rlvr_NH: Tensor) -> Tensor | None:
        return self.rlvr.compute_logits(rlvr_NH)

    def both_logits(self, rlvr_NH: Tensor, base_KH: Tensor) -> tuple[Tensor, Tensor] | None:
        # Both heads run on every rank, gathering or not: the gather is a collective.
        rlvr_NV = self.rlvr.compute_logits(rlvr_NH)
        base_KV = self.base.compute_logits(base_KH)
        return None if rlvr_NV is None or base_KV is None else (rlvr_NV, base_KV)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Rlvr's weights come first and bare, base's after them and prefixed."""
        named = ((n if n.startswith("base.") else f"rlvr.{n}", w) for n, w in weights)
        return AutoWeightsLoader(self).load_weights(named)


def _build(vllm_config: VllmConfig, role: str, vocab_size: int) -> InnerModel:
    """One sub-model, its layers named after its role."""
    config = copy.deepcopy(vllm_config.model_config.hf_config)
    config.vocab_size = vocab_size
    # vLLM's compile cache is keyed by the config alone; without the role, the second model would
    # load the first one's compiled code, which is bound to the first one's KV cache.
    config.rlvr_role = role
    model = init_vllm_registered_model(
        vllm_config, prefix=role, hf_config=config, architectures=config.rlvr_architectures
    )
    pack_layers(model)
    return cast(InnerModel, model)
