"""The sampling settings of a gated request: moved to where the rule finds them.

The rule applies temperature, top-k, top-p and min-p to both of its draws, before the gate. So what
a request says of them, or what the server does where it says nothing, goes into `vllm_xargs`, and
vLLM is told to do nothing. Pure functions of JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rlvr_decode.params import SAMPLING_SETTINGS, XARGS_PREFIX, SettingError
from rlvr_decode.sampling import Sampling
from rlvr_decode.server.body import Object, refuse_repeated

NEUTRAL = asdict(Sampling())


def move_sampling(
    holder: Object,
    xargs: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    inside: str,
) -> dict[str, float | int]:
    """The flat sampling settings of a request; in `holder`, neutral ones take their place.

    holder    the object that has vLLM's own settings.
    xargs     its flat settings; a rendered request has them here already.
    defaults  of the server.
    inside    how `holder` is called in messages: nothing, or "name.".

    Raises SettingError for a value that is malformed, or that disagrees with its flat one.
    """
    chosen: dict[str, Any] = {}
    for name in SAMPLING_SETTINGS:
        refuse_repeated(holder, name, inside + name)
        said, flat = holder.get(name), xargs.get(XARGS_PREFIX + name)
        if flat is not None and said is not None and said not in (flat, NEUTRAL[name]):
            reason = f"disagrees with {XARGS_PREFIX}{name}, which says {flat!r}; say it once"
            raise SettingError(inside + name, said, reason)
        first = [value for value in (flat, said, defaults.get(name)) if value is not None]
        if first:
            chosen[name] = first[0]
    try:
        sampling = Sampling(**chosen)
    except SettingError as error:
        raise SettingError(inside + error.name, error.value, error.reason) from error
    holder.update(NEUTRAL)
    return sampling.to_extra_args()
