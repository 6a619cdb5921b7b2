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

from rlvr_decode.pair import TOKENIZER_FILES, Checkpoint, Pair, digests, write_pair
from rlvr_decode.pair_check import stop_token_ids
from rlvr_decode.params import Extrapolation

_CONFIGS = ("config.json", "generation_config.json")


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A scratch directory that becomes `target` when the block ends well, and is removed if not.

    Raises ValueError when `target` is there already: nothing is ever overwritten.
    """
    target = check_new(target)
    scratch = target.with_name(f"{target.name}.{os.getpid()}.part")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_new(target: Path) -> Path:
    """The absolute path of a directory to make; ValueError when there is one already."""
    target = target.resolve()
    if target.exists():
        raise ValueError(f"{target}: is there already; name a new directory")
    return target


@contextmanager
def derived_pair(
    pair: Pair,
    directory: Path,
    *,
    name: str | None,
    made_by: Mapping[str, Any],
    defaults: Extrapolation | None = None,
) -> Iterator[Path]:
    """A directory to write `rlvr` in; when the block ends it is a pair with pair's base.

    Or with a `base` of its own, if the block writes one.

    name      of the new pair; None for its directory's.
    made_by   how it was made, for its provenance, beside that of the pair it came from. What the
              block adds to it is kept.
    defaults  of its requests; those of the pair unless given.
    """
    directory = directory.resolve()
    with new_directory(directory) as scratch:
        (scratch / "rlvr").mkdir()
        yield scratch
        own = scratch / "base"
        write_pair(
            scratch,
            name=name or directory.name,
            base=own if own.is_dir() else _place(pair.base),
            rlvr=scratch / "rlvr",
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


def base_with_rlvrs_tokenizer(pair: Pair, target: Path) -> None:
    """Base's weights beside the tokenizer and the stops that rlvr is served with.

    An adapter has neither: its pair takes both from base. The weights are linked where `target`
    is on the same file system, and copied elsewhere.
    """
    target.mkdir()
    base = pair.base.fetch()
    for pattern in ("*.safetensors", "*.safetensors.index.json", "config.json"):
        for file in base.glob(pattern):
            _link(file.resolve(), target / file.name)
    for pattern in TOKENIZER_FILES:
        for file in pair.tokenizer_directory.glob(pattern):
            shutil.copyfile(file, target / file.name)
    generation = pair.generation_config / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, target / generation.name)


def serves_like_rlvr(pair: Pair) -> bool:
    """Whether base has the tokenizer, the chat template and the stops that rlvr is served with."""
    base, rlvr = pair.base.fetch(), pair.tokenizer_directory
    same = digests(base, TOKENIZER_FILES) == digests(rlvr, TOKENIZER_FILES)
    return same and set(pair.stop_token_ids) <= set(stop_token_ids(base))


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _place(checkpoint: Checkpoint) -> str | Path:
    if checkpoint.directory is not None:
        return checkpoint.directory
    if checkpoint.fetched is not None:
        return checkpoint.fetched
    return f"{checkpoint.hub}@{checkpoint.revision}"
