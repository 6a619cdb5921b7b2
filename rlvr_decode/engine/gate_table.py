"""The rules of the requests an engine holds, by slot or by position in the batch.

Legend: N rows of a step, G of them that are gated, S settings of a rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rlvr_decode import ops
from rlvr_decode.engine.admission import has_mask
from rlvr_decode.engine.gating import Gates
from rlvr_decode.engine.side_channel import SideChannel
from rlvr_decode.params import TICKET, Extrapolation
from rlvr_decode.rules import rule_numbers, rule_of_rows
from rlvr_decode.sampling import Sampling

if TYPE_CHECKING:
    from vllm import SamplingParams


class GateTable:
    """`to_device` copies an array to the model's device."""

    def __init__(
        self, size: int, to_device: Callable[[np.ndarray], Tensor], channel: SideChannel
    ) -> None:
        self._rules = np.zeros((len(ops.Rule._fields), size), dtype=np.float32)
        self._gated = np.zeros(size, dtype=np.bool_)
        self._masked = np.zeros(size, dtype=np.bool_)
        self._sequences = np.zeros(size, dtype=np.int64)
        self._tickets: list[str | None] = [None] * size
        self._numbers = itertools.count()
        self._to_device = to_device
        self._channel = channel

    def write(self, index: int, extrapolation: Extrapolation, params: SamplingParams) -> None:
        """A request that enters; whatever the place held before is overwritten."""
        self.clear(index)
        if not extrapolation.gated:
            return
        sampling = Sampling.from_extra_args(params.extra_args)
        self._gated[index] = True
        self._masked[index] = has_mask(params)
        self._rules[:, index] = rule_numbers(extrapolation, sampling)
        self._sequences[index] = next(self._numbers)
        ticket = (params.extra_args or {}).get(TICKET)
        self._tickets[index] = ticket
        if ticket is not None and not self._channel.is_open(ticket):
            self._channel.open(ticket)

    def clear(self, index: int) -> None:
        self._gated[index] = self._masked[index] = False
        self._tickets[index] = None

    def swap(self, a: int, b: int) -> None:
        for values in (self._rules.T, self._gated, self._masked, self._sequences):
            values[[a, b]] = values[[b, a]]
        self._tickets[a], self._tickets[b] = self._tickets[b], self._tickets[a]

    def rows(
        self,
        entries_N: np.ndarray,
        paired: np.ndarray,
        positions: Callable[[], Tensor],
        partial_N: np.ndarray | None,
    ) -> tuple[Gates | None, Gates | None]:
        """The gated rows of a step without a mask, and those with one.

        entries_N  the request of each row.
        paired     which rows base's logits are of, ascending.
        positions  gives those of all rows in their sequences, on any device.
        partial_N  whether a row is inside a prompt, where nothing is drawn; None is unknown.
        """
        gated_N, masked_N = self._gated[entries_N], self._masked[entries_N]
        if not gated_N.any():
            return None, None
        positions_N = positions()
        drawn_N = np.ones_like(gated_N) if partial_N is None else ~partial_N

        def gates(rows: np.ndarray) -> Gates | None:
            if len(rows) == 0:
                return None
            entries_G = entries_N[rows]
            rows_G, base_G = self._to_device(np.stack([rows, np.searchsorted(paired, rows)]))
            return Gates(
                rows_G=rows_G,
                base_G=base_G,
                rule=rule_of_rows(self._to_device(self._rules[:, entries_G])),
                host_rows_G=rows,
                entries_N=entries_N,
                tickets=[
                    self._tickets[entry] if drawn else None
                    for entry, drawn in zip(entries_G, drawn_N[rows], strict=True)
                ],
                sequences_G=torch.from_numpy(self._sequences[entries_G]),
                positions_G=positions_N[rows_G.to(positions_N.device)],
            )

        return gates(np.flatnonzero(gated_N & ~masked_N)), gates(np.flatnonzero(masked_N))
