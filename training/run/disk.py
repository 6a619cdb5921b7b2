"""Files that cannot be written: a full disk, a quota, a directory gone read-only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


class SaveError(RuntimeError):
    """Something of a run could not be written; what was saved before is intact."""


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Inside, a failure to write is a SaveError that names the file and the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise SaveError(
            f"{path}: could not be written: {error}. The newest checkpoint is intact: make room "
            "and give the same command again"
        ) from error
