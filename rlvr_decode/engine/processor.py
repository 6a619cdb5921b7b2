"""The plug that vLLM's front end validates requests with, and that feeds the V1 model runner.

It changes no logits: the model extrapolates them itself, so that log-probs, grammar, penalties
and seeds all see the extrapolated distribution. Load it by
`--logits-processors rlvr_decode.engine.processor:ExtrapolationProcessor`; as an entry point it
would load into every vLLM of the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
from vllm.v1.sample.logits_processor import MoveDirectionality

from rlvr_decode.engine.rows import SettingsTable, scores_prompt, step_of
from rlvr_decode.params import XARGS_PREFIX, Extrapolation, SettingError

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


class ExtrapolationProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Validates `vllm_xargs`; under V1 also tells the model each row's strength.

    Under V2 the rows come from `PairedModelState` and this object declines every request.
    """

    def __init__(self, vllm_config: VllmConfig, runner: Any, is_pin_memory: bool = False) -> None:
        # V1 passes a device here, V2 its request states.
        self._device = runner if isinstance(runner, torch.device) else runner.device
        self._step = step_of(vllm_config)
        self._table = SettingsTable(vllm_config.scheduler_config.max_num_seqs, self._device)
        self._batch = np.arange(0)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse, at admission, settings that are malformed or could not be honoured."""
        try:
            extrapolation = Extrapolation.from_extra_args(sampling_params.extra_args)
            if extrapolation.gated:
                raise SettingError(XARGS_PREFIX + "gate", extrapolation.gate, "not served yet")
            if extrapolation.strength != 0 and scores_prompt(sampling_params):
                raise SettingError(
                    XARGS_PREFIX + "strength",
                    extrapolation.strength,
                    "log-probs of the prompt are rlvr's alone; ask for them at strength 0",
                )
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
            self._table.rows(self._batch),
            prompt_logprobs=self._table.any_prompt_logprobs(self._batch),
        )

    def _follow(self, update: BatchUpdate) -> None:
        for index in update.removed:
            self._table.clear(index)
        for index, params, _, _ in update.added:
            self._table.write(index, params)
        for source, target, direction in update.moved:
            self._table.swap(source, target)
            if direction is MoveDirectionality.UNIDIRECTIONAL:
                self._table.clear(source)
        self._batch = np.arange(update.batch_size)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """V2: this processor edits no request's logits."""
        return False

    def apply(self, logits: Tensor, ctx: object = None) -> Tensor:
        return logits
