"""The JSON object in a request's body, which remembers the keys that came more than once."""

from __future__ import annotations

import json
from typing import Any

from rlvr_decode.params import SettingError


class Object(dict[str, Any]):
    repeated: frozenset[str] = frozenset()


def parse(body: bytes) -> Object | None:
    """The body's JSON object; None for anything else, which vLLM refuses in its own words."""
    try:
        value = json.loads(body, object_pairs_hook=_object)
    except RecursionError:
        raise SettingError("body", body[:20], "nested too deeply") from None
    except ValueError:
        return None
    return value if isinstance(value, Object) else None


def refuse_repeated(values: Object, key: str, place: str) -> None:
    """Raise SettingError if a key came more than once: one of its values would be lost."""
    if key in values.repeated:
        raise SettingError(place, values[key], "given twice in one object; give it once")


def _object(pairs: list[tuple[str, Any]]) -> Object:
    result = Object(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        result.repeated = frozenset(key for key in keys if keys.count(key) > 1)
    return result
