"""A new pair made of another: its directory appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlvr_decode.pair import TOKENIZER_FILES, Checkpoint, Pair, write_pair
from rlvr_decode.params import Extrapolation

RLVR = "rlvr"
_CONFIGS = ("config.json", "generation_config.json")


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A scratch directory that becomes `target` when the block ends well, and is removed if not.

    Raises ValueError when `target` is there already: nothing is ever overwritten.
    """
    target = target.resolve()
    if target.exists():
        raise ValueError(f"{target}: is there already; name a new directory")
    scratch = target.with_name(f"{target.name}.{os.getpid()}.part")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def derived_pair(
    pair: Pair,
    directory: Path,
    *,
    name: str | None,
    made_by: Mapping[str, Any],
    defaults: Extrapolation | None = None,
) -> Iterator[Path]:
    """A directory to write the new rlvr in; when the block ends it is a pair with pair's base.

    name      of the new pair; None for its directory's.
    made_by   how it was made, for its provenance, beside that of the pair it came from. What the
              block adds to it is kept.
    defaults  of its requests; those of the pair unless given.
    """
    directory = directory.resolve()
    with new_directory(directory) as scratch:
        (scratch / RLVR).mkdir()
        yield scratch / RLVR
        write_pair(
            scratch,
            name=name or directory.name,
            base=_place(pair.base),
            rlvr=scratch / RLVR,
            defaults=defaults or pair.defaults,
            provenance={**made_by, "from": {"name": pair.name, **pair.provenance}},
        )


def copy_configs(source: Path, target: Path, *, dtype: torch.dtype | None) -> None:
    """The configs and the tokenizer of a checkpoint, for weights stored in another dtype.

    dtype  None for the dtype they were in.
    """
    for pattern in (*_CONFIGS, *TOKENIZER_FILES):
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)
    if dtype is not None:
        file = target / "config.json"
        config = json.loads(file.read_bytes())
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _place(checkpoint: Checkpoint) -> str | Path:
    if checkpoint.directory is not None:
        return checkpoint.directory
    return f"{checkpoint.hub}@{checkpoint.revision}"
