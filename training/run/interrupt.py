"""Stopping on request: after SIGTERM or Ctrl-C the step at hand ends and gets its checkpoint.

A second signal ends the process at once, as if nothing were installed. Either way the same command
goes on later, to the same bits; after the second signal, from the checkpoint before.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

EXIT_CODE = 75
"""Of a process that has stopped on request: "try again later" (EX_TEMPFAIL of sysexits.h)."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NOTICE = b"\nstopping after this step; once more ends the run at once\n"


class Stopped(Exception):
    """A run was asked to stop and did, with a checkpoint of its last step."""

    def __init__(self, what: str) -> None:
        super().__init__(f"stopped on request after {what}; the same command goes on from there")


@dataclass(slots=True)
class StopRequest:
    """Whether a signal has come."""

    requested: bool = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside, the first SIGTERM or SIGINT only sets `requested`.

    Signals reach the main thread alone, so in any other they keep doing what they did.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        request.requested = True
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        # Not print, which the signal may have interrupted.
        os.write(2, _NOTICE)

    before = {each: signal.signal(each, on_signal) for each in _SIGNALS}
    try:
        yield request
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
