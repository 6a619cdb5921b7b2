"""A pair of full weights as base and a plain LoRA, where the measured loss allows it.

An adapter pair stores and reads base's weights once. The form is approximate: only linear layers
have a delta, of limited rank, so what it loses is measured on text before anything is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlvr_decode.deltas import Criterion, Deltas, low_rank_deltas
from rlvr_decode.derive import (
    base_with_rlvrs_tokenizer,
    check_new,
    derived_pair,
    serves_like_rlvr,
)
from rlvr_decode.fidelity import Probe, Quality, qualities
from rlvr_decode.lora import write_lora
from rlvr_decode.pair import Pair

MIN_CORRELATION = 0.95
MAX_REST = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """A pair's low-rank form and what it is worth; `write` makes a pair of it.

    rank       that the largest of its matrices has.
    criterion  by which ranks were chosen, as provenance records it.
    table      base (rank 0), some ranks below the chosen one, and that one last.
    tokens     that the table was measured on.
    """

    pair: Pair
    deltas: Deltas
    rank: int
    criterion: dict[str, Any]
    table: tuple[Quality, ...]
    tokens: int

    @property
    def quality(self) -> Quality:
        """Of what `write` writes."""
        return self.table[-1]


def extract(
    pair: Pair,
    probe: Probe,
    *,
    criterion: Criterion | None = None,
    min_correlation: float = MIN_CORRELATION,
    max_rank: int = 128,
    max_rest: float = MAX_REST,
    seed: int = 0,
    device: str = "cpu",
) -> Extraction:
    """Decompose the update of a pair of full weights and measure it on text.

    probe            rlvr's own text, see `fidelity.make_probe`.
    criterion        the rank of each matrix; unless given, the smallest power of two for all at
                     which Δ correlates well enough, or `max_rank` when none does.
    min_correlation  of Δ with rlvr's own, on the tokens of the probe.
    max_rank         where energy, the noise floor and the search give up.
    max_rest         how far, as ‖Δ‖ / ‖W‖, a norm, a bias, the embeddings or the head may have
                     moved: an adapter leaves them as they are in base.

    Raises ValueError for an adapter pair, a pair without update, a criterion that needs more than
    max_rank, and a tensor beyond max_rest. A correlation that is too low is left to `write`.
    """
    every = criterion or Criterion(rank=max_rank)
    deltas = low_rank_deltas(pair, every, max_rank=max_rank, seed=seed, device=device)
    name, moved = deltas.worst_rest
    if moved > max_rest:
        raise ValueError(
            f"{name} has moved by {moved:.2g} of its norm, and an adapter cannot carry that; the "
            f"limit is {max_rest:g}: raise it and see what the table says, or serve the full pair"
        )
    ranks = [2**i for i in range(20) if 2**i < deltas.largest_rank] + [deltas.largest_rank]
    table = []
    for quality in qualities(pair, deltas, probe, ranks, device=device):
        table.append(quality)
        if criterion is None and meets(quality, min_correlation):
            break
    return Extraction(
        pair=pair,
        deltas=deltas,
        rank=table[-1].rank,
        criterion=_recorded(criterion, min_correlation),
        table=tuple(table),
        tokens=sum(probe.lengths),
    )


def write(
    extraction: Extraction,
    directory: str | Path,
    *,
    min_correlation: float = MIN_CORRELATION,
    name: str | None = None,
) -> Pair:
    """Write base and a plain LoRA, which stock PEFT and stock vLLM load, as a pair.

    The table goes into the provenance. Where rlvr has another chat template, tokenizer file or
    stop than base, the pair gets a base of its own: the same weights beside rlvr's files.

    Raises ValueError, and writes nothing, below `min_correlation` and where `directory` exists.
    """
    directory = check_new(Path(directory))
    if not meets(extraction.quality, min_correlation):
        raise ValueError(
            f"not written: the delta's correlation with rlvr's is {extraction.quality.correlation} "
            f"at rank {extraction.rank}, below the {min_correlation:g} that was asked for; allow "
            "more rank, or serve the full pair"
        )
    pair, deltas = extraction.pair, extraction.deltas
    factors = {
        layer: (each.left_MR[:, : extraction.rank], each.right_RN[: extraction.rank])
        for layer, each in deltas.low_rank.items()
    }
    with derived_pair(pair, directory, name=name, made_by=_provenance(extraction)) as target:
        if not serves_like_rlvr(pair):
            base_with_rlvrs_tokenizer(pair, target / "base")
        base = pair.base.hub
        write_lora(target / "rlvr", factors, scaling=1.0, dtype=deltas.dtype, base=base)
    return Pair.open(directory)


def markdown(table: Sequence[Quality], base_parameters: int) -> str:
    """The table for people: one row a rank."""
    lines = [
        "| rank | adapter / base | energy | KL(rlvr ‖ ·), nats | top-1 agreement | corr. of Δ |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in table:
        correlation = "–" if row.correlation is None else f"{row.correlation:.4f}"
        lines.append(
            f"| {row.rank or 'base'} | {row.parameters / base_parameters:.1%} | {row.energy:.1%} "
            f"| {row.kl:.2e} | {row.top1:.2%} | {correlation} |"
        )
    return "\n".join(lines)


def meets(quality: Quality, min_correlation: float) -> bool:
    """Whether Δ correlates with rlvr's own as well as asked."""
    return quality.correlation is not None and quality.correlation >= min_correlation


def _recorded(criterion: Criterion | None, min_correlation: float) -> dict[str, Any]:
    if criterion is None:
        return {"correlation": min_correlation}
    return {key: value for key, value in asdict(criterion).items() if value}


def _provenance(extraction: Extraction) -> dict[str, Any]:
    name, moved = extraction.deltas.worst_rest
    return {
        "made_by": "pair extract",
        "criterion": extraction.criterion,
        "left_out": {"most_moved": name, "by": moved if math.isfinite(moved) else None},
        "measured_on_tokens": extraction.tokens,
        "quality": [asdict(row) for row in extraction.table],
    }
