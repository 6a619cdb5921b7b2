"""How often a gated request was redrawn, from what the engine said of it.

The engine tells m, the expected rate of intervention, of every row it computes. Some rows are not
drawn in the end (inside a prompt that is read in parts, after a rejected draft); then the same
position comes again, and the last word counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SEQUENCE, POSITION, RATE = "sequence", "position", "intervention_rate"


def intervention_rates(told: Mapping[str, Sequence[Any]]) -> list[float]:
    """m of every position drawn, over all answers of a request, from `SideChannel.take`."""
    drawn: dict[int, list[tuple[int, float]]] = {}
    for sequence, position, rate in zip(
        *(told.get(name, ()) for name in (SEQUENCE, POSITION, RATE)), strict=True
    ):
        of_sequence = drawn.setdefault(sequence, [])
        while of_sequence and of_sequence[-1][0] >= position:
            of_sequence.pop()
        of_sequence.append((position, rate))
    return [rate for of_sequence in drawn.values() for _, rate in of_sequence]
