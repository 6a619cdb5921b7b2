"""Options of a recipe against the signature that will get them, before anything is built."""

from __future__ import annotations

import inspect
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def check_options(make: Callable[..., Any], options: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for an option that is unknown, missing or of another type than annotated."""
    parameters = inspect.signature(make, eval_str=True).parameters
    if unknown := sorted(options.keys() - parameters.keys()):
        known = ", ".join(parameters) or "none"
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known: {known}")
    keywords = [each for each in parameters.values() if each.kind is each.KEYWORD_ONLY]
    missing = [each.name for each in keywords if each.default is each.empty]
    if missing := [name for name in missing if name not in options]:
        raise ValueError(f"{where}: {', '.join(missing)} must be given")
    for name, value in options.items():
        hint = parameters[name].annotation
        if not fits(value, hint):
            said = f"{where}: {name}={reprlib.repr(value)}"
            raise ValueError(f"{said}: must be {spelt(hint)}, not {type(value).__name__}")


def fits(value: object, hint: Any) -> bool:
    """Whether a value of TOML may stand where `hint` is annotated; true is no number."""
    if hint is Any:
        return True
    if isinstance(hint, types.UnionType):
        return any(fits(value, choice) for choice in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if kind in (int, float, bool):
        return type(value) is kind or (kind is float and type(value) is int)
    if kind is Sequence:
        return isinstance(value, list | tuple)
    return isinstance(value, Mapping if kind is dict else kind)


def spelt(hint: Any) -> str:
    """An annotation in the words of a recipe."""
    if isinstance(hint, types.UnionType):
        choices = [each for each in typing.get_args(hint) if each is not types.NoneType]
        return " or ".join(map(spelt, choices))
    kind = typing.get_origin(hint) or hint
    words = {str: "text", bool: "true or false", float: "a number", int: "a whole number"}
    words |= {Mapping: "a table", dict: "a table", Sequence: "a list", list: "a list"}
    return words.get(kind, str(hint))
