"""The update between base and rlvr, matrix by matrix, in low-rank form.

What is no linear layer (norms, biases, embeddings, head) cannot ride in an adapter; how far it
moved is measured instead.

M, N  rows and columns of a weight      R  rank
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from rlvr_decode.lowrank import LowRank, extract_low_rank, rounding_noise_floor
from rlvr_decode.matrices import LINEAR_LAYERS, count_weights, layer_of, weight_pairs
from rlvr_decode.pair import Pair


@dataclass(frozen=True, kw_only=True, slots=True)
class Criterion:
    """How many singular triples of each matrix's update to keep: exactly one of these.

    rank         that many, or all of a smaller matrix.
    energy       as few as hold this share of ‖ΔW‖², in (0, 1].
    noise_floor  those that stick out of the rounding noise of the dtype rlvr is stored in; what
                 is below them is not the update (geometry of a random matrix, see `lowrank.py`).
    """

    rank: int | None = None
    energy: float | None = None
    noise_floor: bool = False

    def __post_init__(self) -> None:
        if (self.rank is not None) + (self.energy is not None) + self.noise_floor != 1:
            raise ValueError(f"{self}: give one of rank, energy and noise_floor")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank={self.rank}: must be at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy={self.energy}: must be in (0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Deltas:
    """A pair's update.

    low_rank  by layer name, of the linear layers that changed.
    squares   ‖ΔW‖² of the same layers, of the whole update.
    rest      by tensor name, ‖Δ‖ / ‖W‖ of everything else.
    dtype     for its factors: bfloat16 where all linear layers of rlvr are, else float32.
    """

    low_rank: Mapping[str, LowRank]
    squares: Mapping[str, float]
    rest: Mapping[str, float]
    dtype: torch.dtype

    @property
    def largest_rank(self) -> int:
        return max((each.rank for each in self.low_rank.values()), default=0)

    @property
    def worst_rest(self) -> tuple[str, float]:
        """The tensor outside the linear layers that moved furthest, and how far."""
        return max(self.rest.items(), key=lambda item: item[1], default=("", 0.0))

    def energy(self, rank: int) -> float:
        """Share of ‖ΔW‖² over all matrices that the leading `rank` triples of each hold."""
        kept = (each.singular_values_R[:rank].double() for each in self.low_rank.values())
        held = sum(values_R.square().sum().item() for values_R in kept)
        return min(held / sum(self.squares.values()), 1.0)

    def parameters(self, rank: int) -> int:
        """Numbers in an adapter of the leading `rank` triples of each matrix."""
        return sum(
            min(rank, each.rank) * (each.left_MR.shape[0] + each.right_RN.shape[1])
            for each in self.low_rank.values()
        )


def low_rank_deltas(
    pair: Pair, criterion: Criterion, *, max_rank: int = 512, seed: int = 0, device: str = "cpu"
) -> Deltas:
    """Decompose the update of a pair of full weights, a matrix at a time, in float32.

    max_rank  where energy and noise_floor give up (ValueError, with the energy held by then).
    device    where the decompositions are computed.

    A randomised SVD each; a 4096 × 4096 matrix takes some seconds on a CPU core. Raises
    ValueError for an adapter pair, whose update is low-rank already, and for one without update.
    """
    if pair.rlvr.kind == "adapter":
        raise ValueError(f"{pair.name}: its rlvr is an adapter already")
    low_rank, squares, rest, dtypes = {}, {}, {}, set()
    generator = torch.Generator().manual_seed(seed)
    base, rlvr = pair.base.fetch(), pair.rlvr.fetch()
    for name, before, after in tqdm(
        weight_pairs(base, rlvr), total=count_weights(base), desc="matrices"
    ):
        delta = after.to(device, torch.float32) - before.to(device, torch.float32)
        if layer_of(name) not in LINEAR_LAYERS:
            rest[name] = _relative(delta, before)
            continue
        dtypes.add(after.dtype)
        if not delta.any():
            continue
        layer = name.removesuffix(".weight")
        try:
            kept = _decompose(delta, after, criterion, max_rank=max_rank, generator=generator)
        except ValueError as error:
            raise ValueError(f"{layer}: {error}") from error
        if kept.rank:
            low_rank[layer] = kept
        squares[layer] = delta.double().square().sum().item()
    if not low_rank:
        raise ValueError(
            f"{pair.name}: no linear layer of rlvr differs from base beyond its storage's rounding"
        )
    dtype = torch.bfloat16 if dtypes == {torch.bfloat16} else torch.float32
    return Deltas(low_rank=low_rank, squares=squares, rest=rest, dtype=dtype)


def _decompose(
    delta_MN: Tensor,
    stored_MN: Tensor,
    criterion: Criterion,
    *,
    max_rank: int,
    generator: torch.Generator,
) -> LowRank:
    if criterion.rank is not None:
        rank = min(criterion.rank, *delta_MN.shape)
        kept = extract_low_rank(delta_MN, rank=rank, generator=generator)
    elif criterion.energy is not None:
        energy = criterion.energy
        kept = extract_low_rank(delta_MN, energy=energy, max_rank=max_rank, generator=generator)
    else:
        floor = rounding_noise_floor(stored_MN, stored_MN.dtype)
        kept = extract_low_rank(delta_MN, noise_floor=floor, max_rank=max_rank, generator=generator)
    return LowRank(
        left_MR=kept.left_MR.cpu(),
        right_RN=kept.right_RN.cpu(),
        singular_values_R=kept.singular_values_R.cpu(),
        energy=kept.energy,
    )


def _relative(delta: Tensor, before: Tensor) -> float:
    moved: float = delta.norm().item()
    size: float = before.float().norm().item()
    if size == 0:
        return math.inf if moved else 0.0
    return moved / size
