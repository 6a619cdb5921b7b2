"""An arm: one way to decode, with everything that sets it apart from the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from rlvr_decode.params import Extrapolation
from rlvr_decode.sampling import Sampling

PAIR = "pair"
CONTROLS = ("update", "vocabulary")
WEIGHTS = "weights"


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """The settings of a request, how it draws, and which two models it is asked of.

    variant  "pair"; "weights", plain rlvr at θ_rlvr + weight_strength · (θ_rlvr − θ_base); or a
             control, a push of the same size in a direction that means nothing: "update" (the
             entries of each tensor of θ_rlvr − θ_base shuffled) or "vocabulary" (Δ shuffled over
             the tokens, the same way at every position).
    min_p    keeps tokens with at least this share of the likeliest one's probability.
    """

    extrapolation: Extrapolation = field(default_factory=Extrapolation)
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    variant: str = PAIR
    weight_strength: float = 0.0

    def __post_init__(self) -> None:
        _ = self.sampling  # refuses what cannot be drawn from

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Arm:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**values, "extrapolation": Extrapolation(**values["extrapolation"])})

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p, min_p=self.min_p)

    @property
    def rlvr(self) -> Arm:
        """Plain rlvr, drawn the same way: what an arm is compared with."""
        return Arm(temperature=self.temperature, top_p=self.top_p)

    @property
    def masked_rlvr(self) -> Arm:
        """rlvr with the arm's plausibility alone, so that what is left of a gain is Δ's.

        Plausibility cuts at temperature 1 and min-p at the request's, hence the power.
        """
        cut = self.extrapolation.plausibility
        if cut == 0 or self.temperature == 0:
            return self.rlvr
        return replace(self.rlvr, min_p=cut ** (1 / self.temperature))

    @property
    def checkpoints(self) -> tuple[str, float]:
        """What has to be loaded for it; arms that agree in this share an engine."""
        return (PAIR if self.variant == "vocabulary" else self.variant, self.weight_strength)

    @property
    def label(self) -> str:
        """For tables: the setting without its temperature."""
        if self.variant == WEIGHTS:
            return f"weights at strength {self.weight_strength:g}"
        settings = self.extrapolation
        plain = self.variant == PAIR and not settings.gated
        named = {-1.0: "base", 0.0: "rlvr"} if plain else {}
        words = [named.get(settings.strength, f"strength {settings.strength:g}")]
        if settings.plausibility:
            words.append(f"plausibility {settings.plausibility:g}")
        if settings.gated:
            at = "" if settings.threshold is None else f" at {settings.threshold:.3g}"
            words.append(f"gate {settings.gate}{at}, {settings.primary} first")
        if self.min_p:
            words.append(f"min-p {self.min_p:.3g}")
        if self.variant in CONTROLS:
            words.append(f"along a shuffled {self.variant}")
        return ", ".join(words)

    @property
    def drawing(self) -> str:
        """For tables: how it draws."""
        temperature = f"T={self.temperature:g}" if self.temperature else "greedy"
        return temperature if self.top_p == 1 else f"{temperature}, top-p {self.top_p:g}"


def grid(
    settings: Iterable[Extrapolation], *, temperatures: Sequence[float], top_p: float
) -> list[Arm]:
    """Every setting at every temperature, with rlvr and base always among them, each arm once."""
    listed = [Extrapolation(), Extrapolation(strength=-1.0), *map(_plain, settings)]
    arms = [
        Arm(extrapolation=setting, temperature=temperature, top_p=top_p)
        for temperature, setting in product(temperatures, listed)
    ]
    return list(dict.fromkeys(arms))


def _plain(settings: Extrapolation) -> Extrapolation:
    """The same distribution said in one way: at strength ≤ 0 without a gate nothing is cut."""
    if not settings.gated and settings.strength <= 0:
        return Extrapolation(strength=settings.strength)
    return settings


def rivals(
    *,
    temperatures: Sequence[float],
    top_p: float,
    weight_strengths: Sequence[float],
    grid: Sequence[Arm],
) -> list[Arm]:
    """What raises accuracy without a second model: lower temperatures, and moved weights.

    Weights are moved at each of the grid's own temperatures. Arms of the grid are left out.
    """
    lower = [Arm(temperature=temperature, top_p=top_p) for temperature in temperatures]
    asked = dict.fromkeys(arm.temperature for arm in grid)
    moved = [
        Arm(variant=WEIGHTS, weight_strength=strength, temperature=temperature, top_p=top_p)
        for temperature, strength in product(asked, weight_strengths)
    ]
    return [arm for arm in dict.fromkeys([*lower, *moved]) if arm not in grid]


def control(arm: Arm, kind: str) -> Arm:
    """The arm with the direction of its push made meaningless."""
    if kind not in CONTROLS:
        raise ValueError(f"control {kind!r}: must be one of {', '.join(CONTROLS)}")
    return replace(arm, variant=kind)
