"""A request's extrapolation settings: what may be asked, and how it travels to the engine.

Standard library only: vLLM's front end imports this module in every process.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams

STRENGTH_RANGE = (-1.0, 10.0)
PLAUSIBILITY_RANGE = (0.0, 1.0)
GATES = ("none",)

XARGS_PREFIX = "extrapolation_"


@dataclass(frozen=True, kw_only=True, slots=True)
class Extrapolation:
    """How far one request goes along the direction that RLVR taught.

    Tokens are drawn from log p_rlvr + strength · Δ with Δ = log p_rlvr − log p_base
    (arXiv 2603.22117, §4.1): strength −1 is base, 0 is rlvr, above 0 goes beyond.

    strength      in [−1, 10].
    plausibility  in [0, 1]: for strength > 0, only tokens with
                  p_rlvr ≥ plausibility · max p_rlvr can be drawn; 0 keeps all. At strength ≤ 0
                  the distribution lies between the two models and nothing is cut.
    gate          where to extrapolate: "none" is every position.

    Raises ValueError naming the setting, its value and what is permitted.
    """

    strength: float = 0.0
    plausibility: float = 0.0
    gate: str = "none"

    def __post_init__(self) -> None:
        _check_number("strength", self.strength, STRENGTH_RANGE)
        _check_number("plausibility", self.plausibility, PLAUSIBILITY_RANGE)
        if not isinstance(self.gate, str) or self.gate not in GATES:
            raise SettingError("gate", self.gate, f"must be one of {', '.join(GATES)}")

    @classmethod
    def from_request(cls, value: object, defaults: Extrapolation) -> Extrapolation:
        """Read the request field `extrapolation`: a number (the strength) or an object."""
        if not isinstance(value, Mapping):
            value = {"strength": value}
        return cls._from_mapping(value, defaults)

    @classmethod
    def from_extra_args(cls, extra_args: Mapping[str, Any] | None) -> Extrapolation:
        """Read vLLM's flat `vllm_xargs`; a request that carries none of ours is plain rlvr.

        Keys of other plugins are theirs; `extrapolation` and any unknown `extrapolation_…` are
        refused, so that a misspelt setting never serves the wrong distribution.
        """
        ours = {key: value for key, value in (extra_args or {}).items() if is_ours(key)}
        if "extrapolation" in ours:
            value = ours["extrapolation"]
            raise SettingError("vllm_xargs.extrapolation", value, f"use {XARGS_PREFIX}strength")
        named = {key.removeprefix(XARGS_PREFIX): value for key, value in ours.items()}
        try:
            return cls._from_mapping(named, cls())
        except SettingError as error:
            raise SettingError(XARGS_PREFIX + error.name, error.value, error.reason) from None

    @classmethod
    def _from_mapping(cls, values: Mapping[str, Any], defaults: Extrapolation) -> Extrapolation:
        known = [field.name for field in fields(cls)]
        for key, value in values.items():
            if key not in known:
                raise SettingError(key, value, f"unknown setting; known: {', '.join(known)}")
        settings = {name: getattr(defaults, name) for name in known} | dict(values)
        return cls(**settings)

    def to_extra_args(self) -> dict[str, float | str]:
        """The same settings as flat `vllm_xargs`, the inverse of `from_extra_args`."""
        return {XARGS_PREFIX + field.name: getattr(self, field.name) for field in fields(self)}

    def sampling_params(self, **settings: Any) -> SamplingParams:
        """vLLM's `SamplingParams` with these settings in `extra_args`, for offline use.

        >>> Extrapolation(strength=0.5).sampling_params(temperature=0.7)  # doctest: +SKIP
        """
        from vllm import SamplingParams

        extra_args = {**(settings.pop("extra_args", None) or {}), **self.to_extra_args()}
        return SamplingParams(extra_args=extra_args, **settings)

    def __str__(self) -> str:
        """The value of the response header `x-extrapolation`."""
        return f"strength={self.strength:g}; plausibility={self.plausibility:g}; gate={self.gate}"


class SettingError(ValueError):
    """A setting nobody may ask for: its name, the value that was sent, and what is permitted."""

    def __init__(self, name: str, value: object, reason: str) -> None:
        # What was sent may be of any length; answers and logs get a glimpse.
        super().__init__(f"{name}={reprlib.repr(value)}: {reason}")
        self.name = name
        self.value = value
        self.reason = reason


def is_ours(key: str) -> bool:
    """Whether a key of `vllm_xargs` belongs to this project."""
    return key.startswith("extrapolation")


def _check_number(name: str, value: object, allowed: tuple[float, float]) -> None:
    low, high = allowed
    # bool is an int in Python, and `true` is no strength.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(name, value, f"must be a number from {low:g} to {high:g}")
    if not low <= value <= high:  # NaN is not either
        raise SettingError(name, value, f"must be from {low:g} to {high:g}")
