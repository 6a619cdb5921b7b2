"""The plug that vLLM's front end validates requests with, and that feeds the V1 model runner.

The model extrapolates the logits itself, so that log-probs, grammar, penalties and seeds all see
the extrapolated distribution; this plug changes those of gated rows with a mask, see `gating.py`.
Load it by `--logits-processors rlvr_decode.engine.processor:ExtrapolationProcessor`; as an entry
point it would load into every vLLM of the environment.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
from vllm.v1.sample.logits_processor import MoveDirectionality

from rlvr_decode.engine.admission import has_mask, refuse_inexact
from rlvr_decode.engine.rows import SettingsTable, step_of
from rlvr_decode.engine.side_channel import channel_of
from rlvr_decode.params import Extrapolation, SettingError

try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import (
        LogitsProcessor as V2LogitsProcessor,
    )
except ModuleNotFoundError:  # a vLLM whose only runner is V1

    class V2LogitsProcessor:  # type: ignore[no-redef]
        pass


if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext


class ExtrapolationProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Validates `vllm_xargs` and draws gated rows with a mask; tells V1's model its rows.

    Under V2 the rows come from `PairedModelState`.
    """

    def __init__(self, vllm_config: VllmConfig, runner: Any, is_pin_memory: bool = False) -> None:
        # V1 passes a device here, V2 its request states.
        device = runner if isinstance(runner, torch.device) else runner.device
        self._step = step_of(vllm_config)
        self._channel = channel_of(vllm_config)
        size = vllm_config.scheduler_config.max_num_seqs
        self._table = SettingsTable(size, device, self._channel)
        self._outputs: list[Sized] = [()] * size
        self._batch = np.arange(0)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse, at admission, settings that are malformed or could not be honoured."""
        try:
            refuse_inexact(sampling_params)
        except SettingError as error:
            raise VLLMValidationError(
                str(error), parameter=error.name, value=error.value
            ) from error

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """V1, before every forward pass: follow the batch, then arm the step."""
        if batch_update is not None:
            self._follow(batch_update)
        self._step.arm(
            self._table.rows(self._batch, self._positions),
            prompt_logprobs=self._table.any_prompt_logprobs(self._batch),
            plain=self._table.all_plain(self._batch),
        )

    def _follow(self, update: BatchUpdate) -> None:
        for index in update.removed:
            self._table.clear(index)
        for index, params, _, output_token_ids in update.added:
            self._table.write(index, params)
            self._outputs[index] = output_token_ids
        for source, target, direction in update.moved:
            self._table.swap(source, target)
            outputs = self._outputs
            outputs[source], outputs[target] = outputs[target], outputs[source]
            if direction is MoveDirectionality.UNIDIRECTIONAL:
                self._table.clear(source)
        self._batch = np.arange(update.batch_size)

    def _positions(self) -> Tensor:
        """Among each request's outputs; while a prompt is read in parts, the first."""
        return torch.tensor([len(self._outputs[index]) for index in self._batch])

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """V2: whether this processor changes the request's logits."""
        asked = Extrapolation.from_extra_args(sampling_params.extra_args)
        return asked.gated and has_mask(sampling_params)

    def apply(self, logits: Tensor, ctx: LogitsContext | None = None) -> Tensor:
        masked = self._step.masked
        if masked is not None and masked.waiting:
            first_entry = None if ctx is None else int(ctx.idx_mapping_np[0])
            masked.draw(logits, first_entry, self._channel)
        return logits
