"""Rows of prompts and answers, from JSONL, CSV, Parquet or Hugging Face `datasets`.

Every reader yields (where, row): `where` names the file and the row for error messages, and a row
maps columns to plain values.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlvr_decode.training.tasks.task import Prompt

Rows = Iterator[tuple[str, dict[str, Any]]]


def read_jsonl(path: str) -> Rows:
    """One JSON object a line."""
    for number, line in enumerate(_file(path).read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{where}: is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: needs an object, got {line!r}")
        yield where, row


def read_csv(path: str) -> Rows:
    """Comma-separated, the first line naming the columns; every value is text."""
    with _file(path).open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{where}: has not as many fields as the first line")
                yield where, row
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: is not CSV: {error}") from None


def read_parquet(path: str) -> Rows:
    """A Parquet file."""
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.ParquetFile(_file(path))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: is not Parquet: {error}") from None
    number = 0
    for batch in table.iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield f"{path}: row {number}", row


def read_datasets(path: str) -> Rows:
    """A Hugging Face dataset: `PLACE:SPLIT` or `PLACE:CONFIG:SPLIT`.

    The place is a directory, written by `save_to_disk` or holding data files, or a hub id.
    """
    import datasets  # type: ignore[import-untyped]

    parts = path.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise ValueError(f"path={path!r}: write PLACE:SPLIT or PLACE:CONFIG:SPLIT")
    place, *config, split = parts
    if (Path(place) / "dataset_dict.json").is_file():
        table = datasets.load_from_disk(f"{place}/{split}")
    else:
        table = datasets.load_dataset(place, *config, split=split)
    for number, row in enumerate(table, start=1):
        yield f"{path}: row {number}", row


READERS: dict[str, Callable[[str], Rows]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "parquet": read_parquet,
    "datasets": read_datasets,
}


def read_prompts(
    rows: Rows,
    path: str,
    *,
    prompt_column: str,
    answer_column: str,
    answer_after: str | None,
    template: str,
) -> list[Prompt]:
    """The rows as prompts; raises ValueError naming file, row, column and value."""
    prompts = []
    for where, row in rows:
        for column in (prompt_column, answer_column):
            if column not in row:
                known = ", ".join(map(str, row))
                raise ValueError(f"{where}: has no column {column!r}; it has {known}")
        answer = _answer(row[answer_column], f"{where}: column {answer_column!r}", answer_after)
        question = row[prompt_column]
        if isinstance(question, str):
            prompts.append(Prompt(text=template.replace("{prompt}", question), answer=answer))
        else:
            if template != "{prompt}":
                raise ValueError(f"{where}: template={template!r} is for text, this is a chat")
            messages = _messages(question, f"{where}: column {prompt_column!r}")
            prompts.append(Prompt(text=readable(messages), answer=answer, messages=messages))
    if not prompts:
        raise ValueError(f"{path}: has no prompts")
    return prompts


def readable(messages: tuple[tuple[str, str], ...]) -> str:
    """A chat for people to read."""
    return "\n".join(f"{role}: {content}" for role, content in messages)


def _answer(value: object, where: str, after: str | None) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{where} is {value!r}: an answer is a string or an integer")
    if after is None:
        return value
    if after not in value:
        raise ValueError(f"{where} is {value!r}: has no {after!r} for the answer to come after")
    return value.rpartition(after)[2].strip()


def _messages(value: object, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} is {value!r}: a prompt is a string or a list of messages")
    for turn in value:
        if not isinstance(turn, dict) or not all(
            isinstance(turn.get(key), str) for key in ("role", "content")
        ):
            raise ValueError(f"{where}: message {turn!r} needs strings role and content")
        if unknown := turn.keys() - {"role", "content"}:
            raise ValueError(f"{where}: message {turn!r} has {', '.join(sorted(unknown))} too")
    return tuple((turn["role"], turn["content"]) for turn in value)


def _file(path: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"path={path!r}: no such file")
    return Path(path)
