"""Weight extrapolation: go beyond rlvr in the weights instead of in the distribution.

θ = θ_rlvr + strength · (θ_rlvr − θ_base), ExPO (arXiv 2404.16792), for every tensor. It decodes
at the cost of one model and is not the same distribution as log p_rlvr + strength · Δ: the free
rival to compare with. At strength 0 it is a merge: an adapter pair as full weights.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rlvr_decode.derive import copy_configs, derived_pair
from rlvr_decode.lora import CONFIG_FILE, WEIGHTS_FILE, read_lora_config
from rlvr_decode.matrices import count_weights, weight_pairs
from rlvr_decode.pair import Pair
from rlvr_decode.params import Extrapolation
from rlvr_decode.weights import Rounding, write_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A written pair, and the share ‖stored − exact‖ / ‖update‖ of its update that storage took.

    lost              in the dtypes it was stored in.
    lost_in_bfloat16  what storing it in bfloat16 would have taken.
    """

    pair: Pair
    lost: float
    lost_in_bfloat16: float


def extrapolate(
    pair: Pair,
    directory: str | Path,
    *,
    strength: float,
    name: str | None = None,
    dtype: torch.dtype | None = None,
) -> Stored:
    """Write a pair of the same base whose rlvr is θ_rlvr + strength · (θ_rlvr − θ_base).

    strength  finite; −1 is base, 0 is rlvr, above 0 goes beyond.
    name      of the new pair; its directory's unless given.
    dtype     to store full weights in; that of each of rlvr's tensors unless given.

    The new pair's default strength is 0, which serves the extrapolated weights as they are. Of an
    adapter pair only the adapter's alpha changes, so nothing is rounded. Matrices pass through
    one at a time, in float32. Raises ValueError when `directory` exists or `strength` is not
    finite, OSError when the disk is full; then nothing is left behind.
    """
    if not math.isfinite(strength):
        raise ValueError(f"{strength=}: must be finite")
    made_by = {"made_by": "pair extrapolate", "strength": strength}
    if pair.rlvr.kind == "adapter":
        if dtype is not None:
            raise ValueError(f"{dtype=}: an adapter is only scaled; `pair merge` it first")
        return _scale_adapter(pair, Path(directory), strength, name, made_by)
    return _write_full(pair, Path(directory), strength, name, dtype, made_by)


def merge(
    pair: Pair,
    directory: str | Path,
    *,
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Stored:
    """Write an adapter pair as one of full weights: W + scaling · B A, computed in float32.

    bfloat16 loses most of a typical RLVR update (`Stored.lost_in_bfloat16` says how much of this
    one). Raises ValueError for a pair of full weights, and like `extrapolate`.
    """
    if pair.rlvr.kind != "adapter":
        raise ValueError(
            f"{pair.name}: its rlvr is full weights already; there is nothing to merge"
        )
    return _write_full(pair, Path(directory), 0.0, name, dtype, {"made_by": "pair merge"})


def _write_full(
    pair: Pair,
    directory: Path,
    strength: float,
    name: str | None,
    dtype: torch.dtype | None,
    made_by: dict[str, Any],
) -> Stored:
    defaults = _defaults(pair, strength)
    rounding = Rounding()
    with derived_pair(pair, directory, name=name, made_by=made_by, defaults=defaults) as target:
        copy_configs(pair.tokenizer_directory, target / "rlvr", dtype=dtype)
        write_weights(target / "rlvr", _extrapolated(pair, strength, dtype, rounding))
        losses = {"lost": rounding.lost, "lost_in_bfloat16": rounding.lost_in_bfloat16}
        made_by |= losses
    return Stored(pair=Pair.open(directory), **losses)


def _extrapolated(
    pair: Pair, strength: float, dtype: torch.dtype | None, rounding: Rounding
) -> Iterator[tuple[str, Tensor]]:
    base, rlvr = pair.base.fetch(), pair.rlvr.fetch()
    pairs = weight_pairs(base, rlvr)
    for weight_name, before, after in tqdm(pairs, total=count_weights(base), desc="weights"):
        start, end = before.float(), after.float()
        # Exactly base and exactly rlvr at either end, which the sum of two products is not.
        exact = torch.lerp(start, end, 1 + strength)
        yield weight_name, rounding.store(exact, exact - start, dtype or after.dtype)


def _scale_adapter(
    pair: Pair, directory: Path, strength: float, name: str | None, made_by: dict[str, Any]
) -> Stored:
    source = pair.rlvr.fetch()
    config = read_lora_config(source)
    assert config is not None
    config["lora_alpha"] *= 1 + strength
    config["alpha_pattern"] = {
        layer: alpha * (1 + strength)
        for layer, alpha in (config.get("alpha_pattern") or {}).items()
    }
    defaults = _defaults(pair, strength)
    with derived_pair(pair, directory, name=name, made_by=made_by, defaults=defaults) as target:
        shutil.copyfile(source / WEIGHTS_FILE, target / "rlvr" / WEIGHTS_FILE)
        text = json.dumps(config, indent=2)
        (target / "rlvr" / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    return Stored(pair=Pair.open(directory), lost=0.0, lost_in_bfloat16=0.0)


def _defaults(pair: Pair, strength: float) -> Extrapolation:
    """What is extrapolated in the weights is not to be extrapolated once more by default."""
    return pair.defaults if strength == 0 else Extrapolation()
