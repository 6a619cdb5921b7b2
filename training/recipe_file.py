"""What a recipe's TOML file says, on top of the recipe that it extends, if it does.

    extends = "tiny-grpo"       # a bundled recipe, or a file beside this one: "mine.toml"
    name = "tiny-gspo"

    [objective]
    name = "gspo"

Standard library only.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEY = "extends"


def read_values(
    recipe: str | Path, *, bundled: Path, below: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """The values of a TOML file, or of the recipe of that name in the directory `bundled`.

    `below` are the files that led here, each extending the next.
    """
    path = Path(recipe)
    if path.suffix != ".toml":
        path = bundled / f"{recipe}.toml"
    if not path.is_file():
        names = sorted(file.stem for file in bundled.glob("*.toml"))
        raise ValueError(f"recipe {str(recipe)!r}: no such file; bundled: {', '.join(names)}")
    if path.resolve() in below:
        raise ValueError(f"{path}: extends itself, by way of {below[-1].name}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error
    if KEY not in values:
        return values
    parent = values.pop(KEY)
    if not isinstance(parent, str):
        raise ValueError(f"{path}: {KEY}={parent!r} must be the name of a recipe or a file")
    where = path.parent / parent if parent.endswith(".toml") else parent
    return over(read_values(where, bundled=bundled, below=(*below, path.resolve())), values)


def over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` on top, section by section and key by key.

    A section that names another thing (`name` or `kind`) takes none of the old one's options.

    >>> over({"optim": {"lr": 1, "steps": 2}}, {"optim": {"lr": 3}})
    {'optim': {'lr': 3, 'steps': 2}}
    >>> over({"name": "grpo", "options": {"eps": 1e-4}}, {"name": "rloo"})
    {'name': 'rloo'}
    """
    merged = dict(values)
    if any(changes.get(key, values.get(key)) != values.get(key) for key in ("name", "kind")):
        merged.pop("options", None)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = over(old, value)
        merged[key] = value
    return merged
