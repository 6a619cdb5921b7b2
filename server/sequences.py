"""How many sequences one request would have generated; both models keep a KV cache for each.

vLLM bounds `n` alone, by an environment variable and at 16384. A request may also bring many
prompts, and each of them gets n answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlvr_decode.params import SettingError

# Where a body may have several prompts: lists of what would be one prompt by itself.
PROMPTS = {"prompt": str, "messages": dict, "items": None}


def refuse_too_many(request: Mapping[str, Any], holder: Mapping[str, Any], limit: int) -> None:
    """Raise SettingError for more sequences than the limit.

    holder  the object of the request that has vLLM's sampling settings.
    """
    n = _whole(holder.get("n"))
    prompts, place = _prompts(request)
    if n * prompts <= limit:
        return
    if prompts == 1:
        raise SettingError("n", holder["n"], f"must be at most {limit} (--max-sequences)")
    reason = f"{prompts} prompts with n={n} are {n * prompts} sequences; at most {limit}"
    raise SettingError(place, prompts, f"{reason} (--max-sequences)")


def _prompts(request: Mapping[str, Any]) -> tuple[int, str]:
    """How many prompts, and the key that has them."""
    for key, single in PROMPTS.items():
        said = request.get(key)
        if not isinstance(said, list) or not said:
            continue
        several = single is None or isinstance(said[0], list) or (single is str is type(said[0]))
        if several:
            return len(said), key
    return 1, "n"


def _whole(n: object) -> int:
    """`n` as vLLM reads it, which takes "5" and 5.0 too; 1 for what it will refuse."""
    try:
        return max(1, int(n))  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError, OverflowError):
        return 1
