"""Options of presets: the preset's own, and those that every objective shares."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from rlvr_decode.training.objectives.objective import Objective

Preset = Callable[..., Objective]

SHARED = (
    "aggregation",
    "max_tokens",
    "reweighting",
    "reweighting_alpha",
    "reweighting_on",
    "kl_coef",
    "kl_estimator",
    "kl_unbiased",
    "entropy_coef",
    "correction",
    "correction_low",
    "correction_high",
    "dynamic_sampling",
)


def preset(build: Preset) -> Preset:
    """Let a preset take the shared options too, and refuse unknown ones by name."""
    own = inspect.signature(build).parameters

    @wraps(build)
    def objective(**options: Any) -> Objective:
        known = sorted({*own, *SHARED})
        for name in options:
            if name not in known:
                raise ValueError(f"{build.__name__}: unknown {name!r}; known: {', '.join(known)}")
        mine = {name: value for name, value in options.items() if name in own}
        shared = {name: value for name, value in options.items() if name not in own}
        return replace(build(**mine), **shared)

    return objective
