"""Recipes of the commands beside `train`: one TOML file and overrides become a frozen dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from rlvr_decode.training.config import RECIPES, build, override
from rlvr_decode.training.recipe_file import read_values

T = TypeVar("T")


def read_recipe(cls: type[T], kind: str, recipe: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a TOML file, or the bundled recipe of that kind and name, with `key=value` overrides."""
    values = read_values(recipe, bundled=RECIPES / kind)
    for item in overrides:
        override(values, item)
    return build(cls, values)
