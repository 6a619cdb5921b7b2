"""A base and a low-rank adapter as one vLLM model: base weights are stored and read once.

A step's tokens are stacked to 2N and run through vLLM's own model of the base once; see
`stacked.py`. Decoding is bound by the reading of weights, so it costs little more than one model.
Legend: N tokens or rows, K of the rows that use base, H hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model

from rlvr_decode.engine.packing import tell_compile_cache
from rlvr_decode.engine.pair_model import InnerModel, PairModel
from rlvr_decode.engine.stacked import stack_layers
from rlvr_decode.lora import read_factors

# Decoder layers of these have the linear layers of `stacked.FUSED` and one attention.
ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)


# The stacking is inside the compiled region, so its graphs are those of N tokens, as the runner
# expects; vLLM's decorator on the inner model stands back while another one is compiling.
@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": -1})
class StackedBody(nn.Module):
    """Hidden states [N, 2H] of both models, rlvr first."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        stacked_2NH = self.body(
            torch.cat([input_ids, input_ids]), torch.cat([positions, positions], dim=-1), None
        )
        return torch.cat(stacked_2NH.chunk(2), dim=-1)


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": -1})
class RlvrBody(nn.Module):
    """Hidden states [N, H] of rlvr, for steps that need no base; compiled apart."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return cast(Tensor, self.body(input_ids, positions, None))


class AdapterPairForCausalLM(PairModel):
    """The engine's model is base; the config's `rlvr_adapter` is the directory of its update."""

    model: InnerModel

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config)
        tell_compile_cache(vllm_config)
        config = copy.deepcopy(vllm_config.model_config.hf_config)
        if not set(config.rlvr_architectures) <= set(ARCHITECTURES):
            raise ValueError(
                f"architectures={config.rlvr_architectures}: an adapter pair needs one of "
                f"{', '.join(ARCHITECTURES)}; merge the adapter and serve a full pair"
            )
        # The compiled code is not that of the plain model, whose config is otherwise the same.
        config.rlvr_role = "stacked"
        model = init_vllm_registered_model(
            vllm_config, prefix=prefix, hf_config=config, architectures=config.rlvr_architectures
        )
        self.stacking = stack_layers(model, read_factors(config.rlvr_adapter), vllm_config)
        self.model = cast(InnerModel, model)
        # Raw logits would show by how much a row is shifted.
        self.shares_linear_head = not vllm_config.model_config.logprobs_mode.endswith("logits")
        body = model.get_submodule("model")
        self.stacked_body = StackedBody(vllm_config=vllm_config, body=body)
        with set_model_tag("rlvr"):
            self.rlvr_body = RlvrBody(vllm_config=vllm_config, body=body)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_input_ids(input_ids)

    def both_hidden(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        capturing = input_ids.is_cuda and torch.cuda.is_current_stream_capturing()
        if not self.step.started and not capturing:
            # The runner is compiling and warming up; the first plain step must find it done.
            self.rlvr_hidden(input_ids, positions)
        return cast(Tensor, self.stacked_body(input_ids, positions))

    def rlvr_hidden(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        self.stacking.rlvr_alone = True
        try:
            return cast(Tensor, self.rlvr_body(input_ids, positions))
        finally:
            self.stacking.rlvr_alone = False

    def rlvr_logits(self, rlvr_NH: Tensor) -> Tensor | None:
        return self.model.compute_logits(rlvr_NH)

    def both_logits(self, rlvr_NH: Tensor, base_KH: Tensor) -> tuple[Tensor, Tensor] | None:
        stacked = self.model.compute_logits(torch.cat([rlvr_NH, base_KH]))
        if stacked is None:
            return None
        return stacked[: len(rlvr_NH)], stacked[len(rlvr_NH) :]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Base's weights; the adapter's were read when the model was made."""
        loaded = AutoWeightsLoader(self).load_weights((f"model.{n}", w) for n, w in weights)
        return loaded | {name for name, _ in self.named_parameters() if ".delta_" in name}
