"""Model runner V2: the settings of each slot, and the rows of each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from rlvr_decode.engine.rows import SettingsTable, step_of
from rlvr_decode.engine.side_channel import channel_of

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.states import RequestState

    from rlvr_decode.engine.pair_model import PairModel


class PairedModelState(DefaultModelState):
    """Arms the pair's `Step` with the strengths of the rows, one row per draft token too."""

    supports_prompt_embeds = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._step = step_of(self.vllm_config)
        self._table = SettingsTable(self.max_num_reqs, self.device, channel_of(self.vllm_config))
        self._prompt_rows = cast("PairModel", self.model).prompt_rows
        self._serving = False

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        assert new_req_data.sampling_params is not None
        self._table.write(req_index, new_req_data.sampling_params)
        self._prompt_rows.admit(
            req_index, new_req_data.sampling_params, new_req_data.prompt_token_ids
        )
        self._serving = True

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        # Batches before the first request are the runner's own: it profiles and warms up.
        if self._serving:
            slots = input_batch.idx_mapping_np
            rows_per_request = np.diff(input_batch.cu_num_logits_np)
            seen = input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens
            rows = self._table.rows(
                np.repeat(slots, rows_per_request),
                lambda: input_batch.positions[input_batch.logits_indices],
                np.repeat(seen < input_batch.prefill_len_np, rows_per_request),
            )
            self._step.arm(
                rows,
                prompt_logprobs=self._table.any_prompt_logprobs(slots),
                plain=self._table.all_plain(slots),
            )
            self._prompt_rows.arm(input_batch)
        return dict(super().prepare_inputs(input_batch, req_states))
