"""From requests to rows: which strength belongs to which row of logits in the coming step.

Both model runners keep a table of settings on the host, one entry a request: V1 by position in
the batch, V2 by slot. Before a step's forward pass they name its rows and arm the `Step`; the
model takes them when it computes the logits. Legend: N rows, K of them that use base.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlvr_decode.engine.admission import scores_prompt
from rlvr_decode.engine.gate_table import GateTable
from rlvr_decode.engine.gating import Gates, Masked, every_row
from rlvr_decode.engine.per_engine import PerEngine
from rlvr_decode.engine.plain import is_marked
from rlvr_decode.engine.side_channel import SideChannel
from rlvr_decode.params import Extrapolation

if TYPE_CHECKING:
    from vllm import SamplingParams


class Rows(NamedTuple):
    """The settings of the rows of one step, on the model's device, fp32."""

    strength_N: Tensor
    plausibility_N: Tensor
    # Which rows use base's logits, [K]; None is all of them. The others are rlvr's own.
    paired_K: Tensor | None
    # Known on the host, so that asking does not wait for the device:
    extrapolating: bool  # whether any row uses base
    cutting: bool  # whether any plausibility is not 0
    # Whether the distribution of every row is that of (1 + strength) · rlvr − strength · base, and
    # nothing sees by how much a whole row of logits is shifted.
    linear: bool = False
    # Gated rows have strength 0 above, and their rule here.
    gated: Gates | None = None
    masked: Gates | None = None  # those whose masks vLLM has yet to apply


class SettingsTable:
    """The settings of the requests an engine holds, by slot or by position in the batch."""

    def __init__(self, size: int, device: torch.device, channel: SideChannel) -> None:
        self._settings = np.zeros((2, size), dtype=np.float32)
        self._uses_base = np.zeros(size, dtype=np.bool_)
        self._plain = np.zeros(size, dtype=np.bool_)
        self._linear = np.zeros(size, dtype=np.bool_)
        self._prompt_logprobs = np.zeros(size, dtype=np.bool_)
        self._device = device
        self._gates = GateTable(size, self._to_device, channel)
        # The rows of the last step and whose they were; None once a setting has changed.
        self._last: tuple[bytes, Rows] | None = None

    def write(self, index: int, params: SamplingParams) -> None:
        """Settings of a request that enters; whatever the place held before is overwritten."""
        self._last = None
        asked = Extrapolation.from_extra_args(params.extra_args)
        self._settings[:, index] = 0 if asked.gated else (asked.strength, asked.plausibility)
        self._uses_base[index] = asked.uses_base
        self._plain[index] = is_marked(params)
        self._linear[index] = is_linear(asked, params)
        self._prompt_logprobs[index] = scores_prompt(params)
        self._gates.write(index, asked, params)

    def clear(self, index: int) -> None:
        self._last = None
        self._settings[:, index] = 0
        self._uses_base[index] = False
        self._plain[index] = False
        self._prompt_logprobs[index] = False
        self._gates.clear(index)

    def swap(self, a: int, b: int) -> None:
        self._last = None
        flags = (self._uses_base, self._plain, self._linear, self._prompt_logprobs)
        for values in (self._settings.T, *flags):
            values[[a, b]] = values[[b, a]]
        self._gates.swap(a, b)

    def rows(
        self,
        entries_N: np.ndarray,
        positions: Callable[[], Tensor],
        partial_N: np.ndarray | None = None,
    ) -> Rows:
        """The rows of a step, row i belonging to entry entries_N[i].

        While the same requests decode they are the same, and made once: making them costs two per
        cent of a small model's step. A gated row's depend on its position.

        positions  gives those of the rows in their sequences, on any device.
        partial_N  whether a row is inside a prompt, where nothing is drawn; None is nowhere.
        """
        whose = entries_N.tobytes()
        if self._last is not None and self._last[0] == whose:
            return self._last[1]
        rows = self._make_rows(entries_N, positions, partial_N)
        self._last = (whose, rows) if rows.gated is None and rows.masked is None else None
        return rows

    def _make_rows(
        self, entries_N: np.ndarray, positions: Callable[[], Tensor], partial_N: np.ndarray | None
    ) -> Rows:
        settings = self._settings[:, entries_N]
        strength_N, plausibility_N = self._to_device(settings)
        paired = np.flatnonzero(self._uses_base[entries_N])
        gated, masked = self._gates.rows(entries_N, paired, positions, partial_N)
        return Rows(
            strength_N,
            plausibility_N,
            paired_K=None if len(paired) == len(entries_N) else self._to_device(paired),
            extrapolating=len(paired) > 0,
            cutting=bool(settings[1].any()),
            linear=bool(self._linear[entries_N].all()),
            gated=gated,
            masked=masked,
        )

    def _to_device(self, values: np.ndarray) -> Tensor:
        host = torch.from_numpy(values)
        if self._device.type == "cuda":
            host = host.pin_memory()  # the copy must not make the host wait for the device
        return host.to(self._device, non_blocking=True)

    def all_plain(self, indices: np.ndarray) -> bool:
        """Whether the step of these requests can do without base altogether."""
        return bool(self._plain[indices].all())

    def any_prompt_logprobs(self, indices: np.ndarray) -> bool:
        """Whether one of these requests also asked for log-probs of its prompt."""
        return bool(self._prompt_logprobs[indices].any())


def is_linear(asked: Extrapolation, params: SamplingParams) -> bool:
    """Whether a request's logits may be one product, see `PairModel.compute_logits`.

    A repetition penalty asks for the sign of each logit, so their shift must be the defined one.
    """
    cuts = asked.strength > 0 and asked.plausibility > 0
    return not asked.gated and not cuts and params.repetition_penalty == 1


class Step:
    """Hands the rows of the coming step to the model: armed once, taken once.

    No row is ever sampled without its strength: taking what was not armed raises. Two calls
    legitimately come unarmed. Before the first request the runner profiles memory; it gets rows
    that extrapolate, so that both heads are accounted for. And the log-probs of a prompt are
    computed after sampling, by a second call in the same step; they are rlvr's.
    """

    def __init__(self) -> None:
        self._rows: Rows | None = None
        self._plain = False
        self.started = False
        self._prompt_logprobs = False
        # What `ExtrapolationProcessor.apply` has to draw before the step is sampled.
        self.masked: Masked | None = None

    def arm(self, rows: Rows, *, prompt_logprobs: bool, plain: bool = False) -> None:
        if self.masked is not None and self.masked.waiting:
            raise RuntimeError(
                f"{self.masked.waiting} gated rows were sampled before their rule was applied: the "
                "model runner bypasses rlvr_decode's processor. Please report the engine flags."
            )
        self.masked = None
        self._rows = rows
        self._plain = plain
        self._prompt_logprobs = prompt_logprobs
        self.started = True

    @property
    def plain(self) -> bool:
        """Whether the armed step is one of nothing but plain requests; no step is none."""
        return self._rows is not None and self._plain

    def take(self, num_rows: int, device: torch.device) -> Rows | None:
        """The armed rows; None when the logits are those of a prompt, which rlvr alone scores."""
        if not self.started:
            ones_N = torch.ones(num_rows, device=device)
            gated = every_row(num_rows, device)
            return Rows(
                ones_N, ones_N, paired_K=None, extrapolating=True, cutting=True, gated=gated
            )
        rows, self._rows = self._rows, None
        if rows is None:
            if self._prompt_logprobs:
                return None
            raise RuntimeError(
                f"{num_rows} rows of logits were asked for, but no strengths were set for this "
                "step: the model runner bypasses rlvr_decode. Please report the engine flags."
            )
        if len(rows.strength_N) != num_rows:
            raise RuntimeError(
                f"{num_rows} rows of logits were asked for, but strengths were set for "
                f"{len(rows.strength_N)}. Please report the engine flags."
            )
        return rows


# The V1 processor and the model share only the config object.
step_of = PerEngine(Step)
