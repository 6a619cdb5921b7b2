"""What a run tells while it goes on: metrics, completions, trackers, a progress bar, curves."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rlvr_decode.training.config import Log, Train
from rlvr_decode.training.rollout.dynamic_sampling import Judged
from rlvr_decode.training.run import samples
from rlvr_decode.training.run.curves import draw_curves
from rlvr_decode.training.run.disk import saving
from rlvr_decode.training.run.metrics import MetricsLog, postfix
from rlvr_decode.training.run.trackers import TRACKERS, Tracker, check_trackers

_SHOWN = {
    "reward": "reward",
    "held_out": "held-out",
    "kl_ref": "kl",
    "entropy": "entropy",
    "tokens_per_second": "tok/s",
}


def check_log(settings: Log) -> None:
    """ValueError for what cannot be told here, before minutes are spent."""
    check_trackers(settings.to)
    if settings.curves and find_spec("matplotlib") is None:
        raise ValueError("log.curves=true: needs the package matplotlib, or set it to false")


class Report:
    """The files `metrics.jsonl`, `samples.jsonl` and `curves.png`, the screen, and the trackers.

    after  the step that a resumed run goes on from: what was told of later ones is forgotten.
    """

    def __init__(self, config: Train, directory: Path, *, after: int) -> None:
        self.settings = config.log
        self.directory = directory
        self.metrics = MetricsLog(directory / "metrics.jsonl")
        self.samples = MetricsLog(directory / "samples.jsonl")
        for log in (self.metrics, self.samples):
            log.rewind(after)
        self.trackers: list[Tracker] = [
            TRACKERS[name](directory, asdict(config), after=after) for name in config.log.to
        ]
        self.bar = tqdm(desc="train", total=config.optim.steps, initial=max(after, 0))

    def step(self, step: int, metrics: Mapping[str, Any], judged: Judged | None = None) -> None:
        """Tell of one step; of step 0, which is the base's, there is nothing judged."""
        self.metrics.write(step, metrics)
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        for tracker in self.trackers:
            tracker.log(step, numbers)
        if judged is None:
            return
        taken = samples.take(judged, self.settings.samples)
        for sample in taken:
            self.samples.write(step, asdict(sample))
        if self.settings.show_every and step % self.settings.show_every == 0:
            tqdm.write(f"step {step}\n{samples.table(taken)}", file=sys.stderr)
        self.bar.set_postfix(postfix(metrics, _SHOWN), refresh=False)
        self.bar.update()

    def close(self) -> None:
        """The last of what is told, and the curves so far."""
        self.bar.close()
        for tracker in self.trackers:
            tracker.close()

    def draw(self) -> None:
        """The curves of the whole run."""
        if self.settings.curves and (lines := self.metrics.read()):
            path = self.directory / "curves.png"
            with saving(path):
                draw_curves(lines, path)


class Silence:
    """The report of every process but the first."""

    def step(self, step: int, metrics: Mapping[str, Any], judged: Judged | None = None) -> None: ...

    def draw(self) -> None: ...


@contextmanager
def reporting(
    config: Train, directory: Path, *, after: int, speaks: bool
) -> Iterator[Report | Silence]:
    """A report, closed at the end, however the run ends."""
    if not speaks:
        yield Silence()
        return
    report = Report(config, directory, after=after)
    try:
        yield report
    finally:
        report.close()
