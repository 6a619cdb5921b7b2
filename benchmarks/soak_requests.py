"""The requests of the soak: everything random that a request may choose."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

PREFIXES, PREFIX_TOKENS, OWN_TOKENS, MAX_TOKENS = 8, 64, 40, 24
FIRST_TOKEN = 3  # after padding, begin and end
THRESHOLDS = {"delta": -0.3, "kl": 0.05, "entropy": 0.5, "random": 0.3, "all": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One distinct request; its extrapolation and its sampling are keyword arguments."""

    prompt: tuple[int, ...]
    extrapolation: dict[str, Any]
    sampling: dict[str, Any]

    @property
    def gated(self) -> bool:
        return "gate" in self.extrapolation


def draw_request(rng: random.Random, vocabulary: int) -> Asked:
    """Seven of ten begin like others; the rest of the prompt is the request's own."""
    prefix = random.Random(rng.randrange(PREFIXES))
    shared = [prefix.randrange(FIRST_TOKEN, vocabulary) for _ in range(PREFIX_TOKENS)]
    length = rng.randrange(1, OWN_TOKENS)
    own = [rng.randrange(FIRST_TOKEN, vocabulary) for _ in range(length)]
    strength = rng.choice([-1.0, 0.0, 0.0, 0.3, 1.0, 2.5, 10.0, rng.uniform(-1, 4)])
    plausibility = rng.choice([0.0, 0.05, rng.random()])
    return Asked(
        prompt=tuple(shared + own if rng.random() < 0.7 else own),
        extrapolation={"strength": strength, "plausibility": plausibility} | _draw_gate(rng),
        sampling=_draw_sampling(rng) | _draw_end(rng),
    )


def _draw_gate(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.6:
        return {}
    gate, threshold = rng.choice(list(THRESHOLDS.items()))
    return {"gate": gate, "threshold": threshold, "primary": rng.choice(["rlvr", "base"])}


def _draw_sampling(rng: random.Random) -> dict[str, Any]:
    """Greedy or at random, by a seed of its own: the gate `random` draws at any temperature."""
    if rng.random() < 0.4:
        return {"temperature": 0.0, "seed": rng.getrandbits(31)}
    return {
        "temperature": rng.uniform(0.3, 1.8),
        "seed": rng.getrandbits(31),
        "top_k": rng.choice([0, 0, 5]),
        "top_p": rng.choice([1.0, 1.0, 0.9]),
        "min_p": rng.choice([0.0, 0.0, 0.02]),
    }


def _draw_end(rng: random.Random) -> dict[str, Any]:
    return {"max_tokens": rng.randrange(1, MAX_TOKENS), "ignore_eos": rng.random() < 0.5}
