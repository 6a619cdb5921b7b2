"""One process at a time writes a run's directory."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlvr_decode.training.run.disk import saving

FILE = "lock"


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Own the directory inside; raises ValueError naming the process that owns it already.

    It is the kernel that holds the lock, and lets go when the process ends, however it ends: the
    file a dead process has left behind locks nothing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{directory}: {file.read().strip() or 'another process'} is at work here; wait "
                "for it, stop it, or give this run another name=…"
            ) from None
        with saving(directory / FILE):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        yield
