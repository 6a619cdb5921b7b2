"""Results on disk: one JSON line for each arm and prompt, so that a stopped run goes on.

The first line says what was measured; a file about something else is refused, never mixed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from rlvr_decode.evaluate.arms import Arm


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What the samples of one arm for one prompt gave, in their order.

    prompt   the digest of its text.
    rewards  from 0 to 1; 1 counts as correct.
    traits   what else the task counts in a response, by name.
    texts    the responses themselves, if they were to be kept.
    """

    prompt: str
    rewards: list[float]
    lengths: list[int]
    finished: list[bool]
    entropies: list[float | None]
    rates: list[float | None]
    traits: Mapping[str, list[float]] = field(default_factory=dict)
    texts: list[str] | None = None


class Journal:
    """The rows of one file, by arm."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[Arm, dict[str, Row]] = {}

    @classmethod
    def open(cls, path: Path, header: Mapping[str, Any]) -> Self:
        """Read the file, or begin it; a line that was being written when a run died is dropped.

        Raises ValueError for a file whose header differs, naming what does.
        """
        journal = cls(path)
        if path.exists() and (text := path.read_text(encoding="utf-8")):
            whole, _, torn = text.rpartition("\n")
            if torn:
                path.write_text(whole + "\n" if whole else "", encoding="utf-8")
            journal._read(whole.split("\n"), header)
        if not path.exists() or not path.stat().st_size:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"evaluation": header}) + "\n", encoding="utf-8")
        return journal

    def _read(self, lines: Sequence[str], header: Mapping[str, Any]) -> None:
        if not any(lines):
            return
        try:
            before, *rows = [json.loads(line) for line in lines]
            began = before["evaluation"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self._path}: no results of this command; name another --out") from (
                None
            )
        for key in {**began, **header}:
            if began.get(key) != header.get(key):
                raise ValueError(
                    f"{self._path}: was begun with {key}={began.get(key)!r}, not "
                    f"{header.get(key)!r}; ask the same, or name another --out"
                )
        for row in rows:
            self._remember(Arm.from_dict(row.pop("arm")), Row(**row))

    def has(self, arm: Arm, prompt: str) -> bool:
        return prompt in self._rows.get(arm, {})

    def add(self, arm: Arm, rows: Iterable[Row]) -> None:
        """Write rows, in one piece."""
        lines = []
        for row in rows:
            self._remember(arm, row)
            values = {key: value for key, value in asdict(row).items() if value is not None}
            lines.append(json.dumps({"arm": asdict(arm)} | values) + "\n")
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def rows(self, arm: Arm, prompts: Iterable[str]) -> list[Row]:
        """The rows of an arm for these prompts, in their order."""
        of_arm = self._rows[arm]
        return [of_arm[prompt] for prompt in prompts]

    def _remember(self, arm: Arm, row: Row) -> None:
        self._rows.setdefault(arm, {})[row.prompt] = row
