"""What an option may be: each check raises ValueError with the option's name and value."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable


def one_of(name: str, value: object, known: Iterable[object]) -> None:
    """One of the known values."""
    known = list(known)
    if isinstance(value, bool) or value not in known:
        raise ValueError(f"{name}={value!r}; known: {', '.join(map(str, known))}")


def number(name: str, value: float, *, low: float = -math.inf, high: float = math.inf) -> None:
    """A finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise ValueError(f"{name}={reprlib.repr(value)} must be a finite number")
    if not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be from {low:g} to {high:g}")


def truth(name: str, value: bool) -> None:
    """True or false; anything else would count as one of them."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be true or false")


def whole_number(name: str, value: int, *, low: int) -> None:
    """An integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {low}")


def clip_range(clip_low: float, clip_high: float) -> None:
    """A range [1−clip_low, 1+clip_high] for ratios."""
    number("clip_low", clip_low, low=0.0, high=1.0)
    number("clip_high", clip_high, low=0.0)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
