"""What a request must not hold, since it cannot be sent to the engine's process.

vLLM names most of what is wrong in a request with a 400. These pass its checks, fail on the way to
the engine, and would get a 500 that names nothing (vLLM 0.32, its issue 54116).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlvr_decode.params import SettingError

# Fields that vLLM reads as objects before it has checked that they are.
OBJECTS = ("structured_outputs",)
LOWEST, HIGHEST = -(2**63), 2**64 - 1
# In JSON as Python writes it: half of a surrogate pair, perhaps, or more digits than 64 bits have.
_SUSPECT = re.compile(rb"\\ud[89a-f]|[0-9]{19}")


def refuse_unsendable(request: Mapping[str, Any], written: bytes) -> None:
    """Raise SettingError for the first value that the engine could not be told.

    written  the same request as JSON. Most hold nothing suspect, and are not looked through.
    """
    for name in OBJECTS:
        value = request.get(name)
        if value is not None and not isinstance(value, dict):
            raise SettingError(name, value, "must be an object")
    if _SUSPECT.search(written) is None:
        return
    for place, value in _leaves(request):
        if isinstance(value, str) and not _is_text(value):
            raise SettingError(place, value, "holds half of a surrogate pair, which is no text")
        if isinstance(value, int) and not LOWEST <= value <= HIGHEST:
            raise SettingError(place, value, "must fit into 64 bits")


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Every value of a request with its place, and every key as a value."""
    waiting = [("", value)]
    while waiting:
        place, each = waiting.pop()
        if isinstance(each, dict):
            for key, inner in each.items():
                yield place, key
                waiting.append((f"{place}.{key}".removeprefix("."), inner))
        elif isinstance(each, list):
            waiting += [(f"{place}[{i}]", inner) for i, inner in enumerate(each)]
        else:
            yield place, each


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
