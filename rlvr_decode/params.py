"""A request's extrapolation settings: what may be asked, and how it travels to the engine.

Standard library only: vLLM's front end imports this module in every process.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams

STRENGTH_RANGE = (-1.0, 10.0)
PLAUSIBILITY_RANGE = (0.0, 1.0)
# The gates that compare something with a threshold: in nats, and `random` in probability.
THRESHOLD_RANGES = {
    "delta": (-100.0, 100.0),
    "kl": (0.0, 100.0),
    "reverse_kl": (0.0, 100.0),
    "jsd": (0.0, math.log(2)),
    "entropy": (0.0, 20.0),
    "random": (0.0, 1.0),
}
GATES = ("none", "all", *THRESHOLD_RANGES)
PRIMARIES = ("rlvr", "base")

XARGS_PREFIX = "extrapolation_"
# Of a gated request, see `sampling.py`.
SAMPLING_SETTINGS = ("temperature", "top_k", "top_p", "min_p")
# Where the front end finds what the engine measured of a request.
TICKET = XARGS_PREFIX + "ticket"
# Keys that travel with the settings but are none.
_BESIDE = frozenset((*(XARGS_PREFIX + name for name in SAMPLING_SETTINGS), TICKET))


@dataclass(frozen=True, kw_only=True, slots=True)
class Extrapolation:
    """How far one request goes along the direction that RLVR taught.

    Tokens are drawn from log p_rlvr + strength · Δ with Δ = log p_rlvr − log p_base
    (arXiv 2603.22117, §4.1): strength −1 is base, 0 is rlvr, above 0 goes beyond.

    strength      in [−1, 10].
    plausibility  in [0, 1]: for strength > 0, only tokens with
                  p_rlvr ≥ plausibility · max p_rlvr can be drawn; 0 keeps all. At strength ≤ 0
                  the distribution lies between the two models and nothing is cut.
    gate          where to extrapolate. "none": at every position, and vLLM samples as ever. With
                  any other gate, a token is first drawn from the primary model and, where the
                  gate says so, thrown away and drawn again from the extrapolated distribution
                  (arXiv 2603.22117, §3 and §4): strength 0 replaces by rlvr.
                  "delta": where the drawn token has Δ ≤ threshold, the papers' rule. "kl",
                  "reverse_kl", "jsd": where KL(p_rlvr ‖ p_base), KL(p_base ‖ p_rlvr) or the
                  Jensen–Shannon divergence ≥ threshold. "entropy": where the primary's ≥
                  threshold. "random": with probability threshold. "all": always.
    threshold     for the gates of `THRESHOLD_RANGES`, which require one.
    primary       "rlvr" or "base": the model that a gate has the first draw from.

    Raises ValueError naming the setting, its value and what is permitted.
    """

    strength: float = 0.0
    plausibility: float = 0.0
    gate: str = "none"
    threshold: float | None = None
    primary: str = "rlvr"

    def __post_init__(self) -> None:
        for field in fields(self):
            check_setting(field.name, getattr(self, field.name))
        self._check_threshold()
        if not self.gated and self.primary != "rlvr":
            reason = f"gate {self.gate} draws once; leave it out, or choose a gate"
            raise SettingError("primary", self.primary, reason)

    def _check_threshold(self) -> None:
        permitted = THRESHOLD_RANGES.get(self.gate)
        if permitted is None and self.threshold is not None:
            reason = f"gate {self.gate} compares with nothing; leave it out"
            raise SettingError("threshold", self.threshold, reason)
        if permitted is not None and self.threshold is None:
            low, high = permitted
            reason = f"gate {self.gate} needs a number from {low:g} to {high:g}"
            raise SettingError("threshold", None, reason)
        if permitted is not None:
            check_number("threshold", self.threshold, permitted)

    @property
    def gated(self) -> bool:
        """Whether a token is drawn by the gated rule, which also applies temperature and cuts."""
        return self.gate != "none"

    @property
    def uses_base(self) -> bool:
        """Whether base's logits matter; otherwise the request is plain rlvr's."""
        return self.gated or self.strength != 0

    @classmethod
    def from_request(cls, value: object, defaults: Extrapolation) -> Extrapolation:
        """Read the request field `extrapolation`: a number (the strength) or an object.

        What it leaves out is taken from the defaults; but threshold and primary belong to the gate,
        and a request that names another gate than the defaults' gets neither of theirs.
        """
        if not isinstance(value, Mapping):
            value = {"strength": value}
        return cls._from_mapping(value, defaults)

    @classmethod
    def from_extra_args(cls, extra_args: Mapping[str, Any] | None) -> Extrapolation:
        """Read vLLM's flat `vllm_xargs`; a request that carries none of ours is plain rlvr.

        Keys of other plugins are theirs; `extrapolation` and any unknown `extrapolation_…` are
        refused, so that a misspelt setting never serves the wrong distribution.
        """
        given = (extra_args or {}).items()
        ours = {key: value for key, value in given if is_ours(key) and key not in _BESIDE}
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
        for key, value in values.items():
            check_setting(key, value)
        settings = {name: getattr(defaults, name) for name in _CHECKS}
        if values.get("gate", defaults.gate) != defaults.gate:
            del settings["threshold"], settings["primary"]
        return cls(**(settings | dict(values)))

    def to_extra_args(self) -> dict[str, float | str]:
        """The same settings as flat `vllm_xargs`, the inverse of `from_extra_args`."""
        return {XARGS_PREFIX + name: value for name, value in self._applied().items()}

    def _applied(self) -> dict[str, Any]:
        """The settings that mean something beside each other."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.threshold is None:
            del settings["threshold"]
        if not self.gated:
            del settings["primary"]
        return settings

    def sampling_params(self, **settings: Any) -> SamplingParams:
        """vLLM's `SamplingParams` with these settings in `extra_args`, for offline use.

        With a gate, temperature, top_k, top_p and min_p travel there too: the rule applies them.

        >>> Extrapolation(strength=0.5).sampling_params(temperature=0.7)  # doctest: +SKIP
        """
        from vllm import SamplingParams

        from rlvr_decode.sampling import Sampling

        extra_args = {**(settings.pop("extra_args", None) or {}), **self.to_extra_args()}
        if self.gated:
            extra_args |= Sampling.take(settings, {}).to_extra_args()
        return SamplingParams(extra_args=extra_args, **settings)

    def __str__(self) -> str:
        """The value of the response header `x-extrapolation`."""
        return "; ".join(
            f"{name}={value}" if isinstance(value, str) else f"{name}={value:g}"
            for name, value in self._applied().items()
        )


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


def check_setting(name: str, value: object) -> None:
    """Raise SettingError for an unknown setting, or a value that nothing beside it could permit."""
    if name not in _CHECKS:
        raise SettingError(name, value, f"unknown setting; known: {', '.join(_CHECKS)}")
    allowed = _CHECKS[name]
    if not isinstance(allowed[0], str):
        if name != "threshold" or value is not None:
            check_number(name, value, allowed)
    elif not isinstance(value, str) or value not in allowed:
        raise SettingError(name, value, f"must be one of {', '.join(allowed)}")


def check_number(name: str, value: object, allowed: tuple[float, float]) -> None:
    low, high = allowed
    # bool is an int in Python, and `true` is no strength.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(name, value, f"must be a number from {low:g} to {high:g}")
    if not low <= value <= high:  # NaN is not either
        raise SettingError(name, value, f"must be from {low:g} to {high:g}")


# For each setting the range of numbers, or the words.
_CHECKS: dict[str, tuple[Any, ...]] = {
    "strength": STRENGTH_RANGE,
    "plausibility": PLAUSIBILITY_RANGE,
    "gate": GATES,
    "threshold": (
        min(low for low, _ in THRESHOLD_RANGES.values()),
        max(high for _, high in THRESHOLD_RANGES.values()),
    ),
    "primary": PRIMARIES,
}
