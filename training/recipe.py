"""Recipes of the commands beside `train`: one TOML file and overrides become a frozen dataclass."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from rlvr_decode.training.config import RECIPES, build, override

T = TypeVar("T")


def read_recipe(cls: type[T], kind: str, recipe: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a TOML file, or the bundled recipe of that kind and name, with `key=value` overrides."""
    path = Path(recipe)
    if path.suffix != ".toml":
        path = RECIPES / kind / f"{recipe}.toml"
    if not path.is_file():
        bundled = sorted(file.stem for file in (RECIPES / kind).glob("*.toml"))
        raise ValueError(f"recipe {str(recipe)!r}: no such file; bundled: {', '.join(bundled)}")
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    for item in overrides:
        override(values, item)
    return build(cls, values)
