"""Options of presets: the preset's own, and those that every objective shares."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial, wraps
from typing import Any, get_args, get_type_hints

from rlvr_decode.training.objectives import advantages
from rlvr_decode.training.objectives.checks import number, one_of
from rlvr_decode.training.objectives.listwise import Projection
from rlvr_decode.training.objectives.objective import Advantage, Objective
from rlvr_decode.training.option_types import fits, spelt

Preset = Callable[..., Objective]

SHARED = (
    "advantage",
    "aggregation",
    "max_tokens",
    "overlong_tokens",
    "overlong_buffer",
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

# What `advantage="…"` may name on any preset but the listwise ones, with the papers' defaults.
ADVANTAGES: dict[str, Advantage] = {
    "reward": Advantage(estimator=advantages.reward),
    "group_normalised": Advantage(estimator=advantages.group_normalised),
    "group_centred": Advantage(estimator=advantages.group_centred),
    "leave_one_out": Advantage(estimator=advantages.leave_one_out),
    "batch_normalised": Advantage(estimator=advantages.batch_normalised),
    "maxrl": Advantage(estimator=advantages.maxrl),
    "length_weighted": Advantage(estimator=advantages.length_weighted, needs=("mask_BT",)),
    "informative_share": Advantage(estimator=advantages.informative_share),
    "over_greedy": Advantage(estimator=advantages.over_greedy, needs=("greedy_rewards_B",)),
    "negative_part": Advantage(estimator=advantages.negative_part),
    "virtual_best": Advantage(estimator=advantages.virtual_best),
    "pass_at_k": Advantage(estimator=partial(advantages.pass_at_k, k=4)),
    "whitened_returns": Advantage(estimator=advantages.whitened_returns, needs=("mask_BT",)),
}


def preset(build: Preset) -> Preset:
    """Let a preset take the shared options too, and refuse unknown ones by name."""
    hints = option_types(build)
    own = hints.keys()

    @wraps(build)
    def objective(**options: Any) -> Objective:
        known = sorted(own | set(SHARED))
        for name, value in options.items():
            if name not in known:
                raise ValueError(f"{build.__name__}: unknown {name!r}; known: {', '.join(known)}")
            check_option(name, value, hints)
        mine = {name: value for name, value in options.items() if name in own}
        shared = {name: value for name, value in options.items() if name not in own}
        return _with_shared(build(**mine), shared)

    return objective


def check_option(name: str, value: object, hints: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that is not of its annotated type, or no finite number."""
    if name in hints and not fits(value, hints[name]):
        said = f"{name}={reprlib.repr(value)}"
        raise ValueError(f"{said}: must be {spelt(hints[name])}, not {type(value).__name__}")
    if isinstance(value, float):
        number(name, value)


def option_types(build: Preset) -> dict[str, Any]:
    """The options of a preset's signature, including those of `**options: Unpack[…]`."""
    hints = get_type_hints(build)
    types: dict[str, Any] = {}
    for parameter in inspect.signature(build).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (options,) = get_args(hints[parameter.name])
            types |= get_type_hints(options)
        else:
            types[parameter.name] = hints[parameter.name]
    return types


def _with_shared(objective: Objective, shared: dict[str, Any]) -> Objective:
    if isinstance(objective.credit, Projection):
        for name in ("advantage", "aggregation"):
            if name in shared:
                raise ValueError(f"{objective.name}: its projection decides the {name}; remove it")
    if "advantage" in shared:
        shared = dict(shared)
        name = shared.pop("advantage")
        one_of("advantage", name, ADVANTAGES)
        objective = replace(objective, credit=ADVANTAGES[name])
    return replace(objective, **shared)
