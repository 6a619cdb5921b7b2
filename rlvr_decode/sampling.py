"""How a gated request draws: the sampling settings that the rule applies in vLLM's place.

The papers' loop shapes each model's distribution before its gate looks at what was drawn, so for
such a request they are part of the rule. They travel beside it, flat, and vLLM gets neutral ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rlvr_decode.params import SAMPLING_SETTINGS, XARGS_PREFIX, SettingError, check_number

# vLLM's own limits.
TEMPERATURE_RANGE = (0.0, 2.0)
TOP_K_RANGE = (-1, 2**24)  # whole numbers up to here are exact in float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Temperature and truncation of both draws of the gated rule, in vLLM's meaning and order.

    temperature  in [0, 2]; at 0, both models are certain of their likeliest token.
    top_k        at least −1; 0 and −1 keep all.
    top_p        in (0, 1]; 1 keeps all.
    min_p        in [0, 1]; 0 keeps all.

    Raises ValueError naming the setting, its value and what is permitted.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, TEMPERATURE_RANGE)
        check_number("top_k", self.top_k, TOP_K_RANGE)
        if not isinstance(self.top_k, int):
            raise SettingError("top_k", self.top_k, "must be a whole number")
        check_number("top_p", self.top_p, (0.0, 1.0))
        if self.top_p == 0:
            raise SettingError("top_p", self.top_p, "must be above 0")
        check_number("min_p", self.min_p, (0.0, 1.0))

    @classmethod
    def take(cls, settings: dict[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """Remove the sampling settings from others; what is not there, or None, is the default."""
        chosen = {name: defaults[name] for name in SAMPLING_SETTINGS if name in defaults}
        for name in SAMPLING_SETTINGS:
            if (value := settings.pop(name, None)) is not None:
                chosen[name] = value
        return cls(**chosen)

    @classmethod
    def from_extra_args(cls, extra_args: Mapping[str, Any] | None) -> Sampling:
        """Read vLLM's flat `vllm_xargs`, the inverse of `to_extra_args`."""
        given = {name: (extra_args or {}).get(XARGS_PREFIX + name) for name in SAMPLING_SETTINGS}
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except SettingError as error:
            raise SettingError(XARGS_PREFIX + error.name, error.value, error.reason) from None

    def to_extra_args(self) -> dict[str, float | int]:
        return {XARGS_PREFIX + field.name: getattr(self, field.name) for field in fields(self)}


NEUTRAL = Sampling()
