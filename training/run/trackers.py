"""Metrics for the trackers people already use, beside `metrics.jsonl`, which is always written.

A tracker is a plain object with `log` and `close`. The packages are optional, and imported when a
recipe names them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Where the numbers of each step go."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's own directory, to look at with `tensorboard --logdir`."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], *, after: int) -> None:
        # What a run that died has written after its checkpoint is hidden from here on.
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(directory / "tensorboard"), purge_step=after + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """A trackio run named after the directory, in the project `rlvr-decode`."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], *, after: int) -> None:
        self._module = import_module("trackio")
        self._module.init(
            project="rlvr-decode", name=directory.name, config=dict(settings), resume="allow"
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._module.log(dict(metrics), step=step)

    def close(self) -> None:
        self._module.finish()


class WandB:
    """A wandb run named after the directory, in the project `rlvr-decode`; WANDB_MODE=offline
    keeps it on this machine."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], *, after: int) -> None:
        self._run = import_module("wandb").init(
            project="rlvr-decode",
            id=directory.name,
            name=directory.name,
            dir=str(directory),
            config=dict(settings),
            resume="allow",
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[..., Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WandB,
}


def check_trackers(names: Sequence[str]) -> None:
    """ValueError for a tracker that does not exist, or whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"log.to: {name!r} is unknown; known: {', '.join(TRACKERS)}")
        try:
            import_module(name)
        except ImportError as error:
            raise ValueError(
                f"log.to: {name!r} needs the package {name}, which does not import ({error}); "
                f"pip install {name}, or leave it out"
            ) from None
