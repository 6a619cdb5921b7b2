"""What a run tells: one JSON line per step in a file, and a progress bar on the screen."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr_decode.training.run.disk import saving


@dataclass(frozen=True, slots=True)
class MetricsLog:
    """A JSONL file, one object per line, each with its `step`."""

    path: Path

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line; it is on its way to the disk when this returns."""
        with saving(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Every complete line so far; a line cut short by a crash is dropped."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rewind(self, step: int) -> None:
        """Forget what came after `step`: a resumed run tells those steps again."""
        kept = [line for line in self.read() if line["step"] <= step]
        scratch = self.path.with_suffix(".tmp")
        with saving(self.path):
            scratch.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(scratch, self.path)


def postfix(metrics: Mapping[str, float], names: Mapping[str, str]) -> dict[str, str]:
    """The metrics a progress bar shows, under short names, to three digits."""
    return {short: f"{metrics[name]:.3g}" for name, short in names.items() if name in metrics}
