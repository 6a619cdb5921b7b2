"""The gated rule in the engine: when a step's gated rows are drawn.

A row's logits become log q, the distribution that the rule emits, as soon as the models' are known;
vLLM takes it for the model's own, so log-probs, seeds and the verification of drafts all see it.

A mask (a grammar, `logit_bias`, …) belongs before the gate: both draws of the papers' loop respect
it. But vLLM adds it to the logits later. So a row with a mask gets zeros first, vLLM turns them
into the mask itself, and `ExtrapolationProcessor`, whose turn comes right after, applies the rule.

Legend: N rows of a step, K of them that use base, G of them that are gated, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlvr_decode import ops
from rlvr_decode.engine.side_channel import SideChannel
from rlvr_decode.interventions import POSITION, RATE, SEQUENCE
from rlvr_decode.params import Extrapolation
from rlvr_decode.rules import rule_numbers, rule_of_rows
from rlvr_decode.sampling import Sampling


class Gates(NamedTuple):
    """Gated rows of one step."""

    rows_G: Tensor
    """Which of the N rows they are."""
    base_G: Tensor
    """Which of the K rows of base's logits are theirs."""
    rule: ops.Rule
    host_rows_G: np.ndarray
    """`rows_G`, known without waiting for a device."""
    entries_N: np.ndarray
    """The request of each of the N rows: its slot, or its position in the batch."""
    tickets: list[str | None]
    """For each row, where its rate of intervention is asked for."""
    sequences_G: Tensor
    """Numbers the sequences that tickets stand for; on the host."""
    positions_G: Tensor
    """In their sequences; on any device."""

    def select(self, chosen: Tensor) -> Gates:
        """Some of them, by index among the G, which is on the host."""
        on_device = chosen.to(self.rows_G.device, non_blocking=True)
        return Gates(
            rows_G=self.rows_G[on_device],
            base_G=self.base_G[on_device],
            rule=ops.Rule(*(setting[on_device] for setting in self.rule)),
            host_rows_G=self.host_rows_G[chosen.numpy()],
            entries_N=self.entries_N,
            tickets=[self.tickets[i] for i in chosen.tolist()],
            sequences_G=self.sequences_G[chosen],
            positions_G=self.positions_G[chosen.to(self.positions_G.device)],
        )

    def tell(self, rate_G: Tensor, channel: SideChannel) -> None:
        """Pass on the rates of intervention that somebody asks for."""
        told = {SEQUENCE: self.sequences_G, POSITION: self.positions_G, RATE: rate_G}
        for row, ticket in enumerate(self.tickets):
            if ticket is not None:
                channel.put(ticket, {name: of[row : row + 1] for name, of in told.items()})


def every_row(num_rows: int, device: torch.device) -> Gates:
    """The rows of a profile run, which is to need as much memory as any step."""
    rows_N = torch.arange(num_rows, device=device)
    numbers_S = torch.tensor(rule_numbers(Extrapolation(gate="all"), Sampling()), device=device)
    return Gates(
        rows_G=rows_N,
        base_G=rows_N,
        rule=rule_of_rows(numbers_S[:, None].repeat(1, num_rows)),
        host_rows_G=np.arange(num_rows),
        entries_N=np.arange(num_rows),
        tickets=[None] * num_rows,
        sequences_G=rows_N,
        positions_G=rows_N,
    )


def draw(
    logits_NV: Tensor, rlvr_NV: Tensor, base_KV: Tensor, gates: Gates, channel: SideChannel
) -> None:
    """Write log q into the gated rows of a step; they have no mask."""
    gated = ops.gated_extrapolate(rlvr_NV[gates.rows_G], base_KV[gates.base_G], gates.rule)
    logits_NV[gates.rows_G] = gated.logprobs
    gates.tell(gated.rate, channel)


class Masked:
    """Gated rows that wait for their masks, with both models' logits.

    logits_NV  their rows are set to 0.
    """

    def __init__(self, logits_NV: Tensor, rlvr_NV: Tensor, base_KV: Tensor, gates: Gates) -> None:
        self._gates = gates
        self._rlvr_GV = rlvr_NV[gates.rows_G]
        self._base_GV = base_KV[gates.base_G]
        self.waiting = len(gates.host_rows_G)
        logits_NV[gates.rows_G] = 0.0

    def draw(self, logits_NV: Tensor, first_entry: int | None, channel: SideChannel) -> None:
        """Write log q over the masks.

        logits_NV    the rows that are sampled from together: all, or a run of requests.
        first_entry  the first one's; None is all rows.
        """
        gates, rlvr_GV, base_GV = self._gates, self._rlvr_GV, self._base_GV
        start = 0 if first_entry is None else int((gates.entries_N == first_entry).argmax())
        rows = gates.host_rows_G - start
        here = (rows >= 0) & (rows < len(logits_NV))
        if not here.any():
            return
        if not here.all():
            chosen = torch.from_numpy(np.flatnonzero(here))
            on_device = chosen.to(rlvr_GV.device)
            gates, rlvr_GV, base_GV = gates.select(chosen), rlvr_GV[on_device], base_GV[on_device]
        rows_G = gates.rows_G - start
        gated = ops.gated_extrapolate(rlvr_GV, base_GV, gates.rule, logits_NV[rows_G])
        logits_NV[rows_G] = gated.logprobs
        gates.tell(gated.rate, channel)
        self.waiting -= len(rows_G)
