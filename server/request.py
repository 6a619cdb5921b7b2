"""What one request says about extrapolation, and the request vLLM gets instead.

A client may speak in three places, all of them optional:

    "extrapolation": 0.5                          the field: a number, or an object of settings
    "model": "tiny@0.5"                           the name: a strength, or @rlvr, or @base
    "vllm_xargs": {"extrapolation_strength": 0.5} vLLM's own way

Two places that speak of one setting must agree; a setting that none names is the pair's default.
vLLM gets the plain model name and every setting in `vllm_xargs`, with a gate also its sampling
settings (`gated.py`). Pure functions of JSON: HTTP is in `middleware.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlvr_decode.params import (
    SAMPLING_SETTINGS,
    TICKET,
    XARGS_PREFIX,
    Extrapolation,
    SettingError,
    check_setting,
    is_ours,
)
from rlvr_decode.server.body import Object, parse, refuse_repeated
from rlvr_decode.server.gated import move_sampling
from rlvr_decode.server.sendable import refuse_unsendable
from rlvr_decode.server.sequences import refuse_too_many

FIELD = "extrapolation"
NAMED_STRENGTHS = {"rlvr": 0.0, "base": -1.0}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class Route(NamedTuple):
    """How one of vLLM's routes takes settings.

    carrier       the keys that lead to the object of flat settings in its body.
    extrapolates  False where vLLM drops that object, so that only rlvr can answer.
    generates     False where the request is only written out, to be sent later.
    defaults      whether vLLM applies the sampling settings of the generation config.
    """

    carrier: tuple[str, ...] = ("vllm_xargs",)
    extrapolates: bool = True
    generates: bool = True
    defaults: bool = True


# Every route of vLLM's server that reaches the engine's sampler, or writes what will reach it.
ROUTES = {
    "/v1/chat/completions": Route(),
    "/v1/chat/completions/batch": Route(),
    "/v1/chat/completions/render": Route(generates=False),
    "/v1/completions": Route(),
    "/v1/completions/render": Route(generates=False),
    "/v1/responses": Route(),
    "/v1/responses/render": Route(generates=False),
    "/v1/messages": Route(),
    "/v1/messages/render": Route(generates=False),
    "/invocations": Route(),
    "/inference/v1/generate": Route(carrier=("sampling_params", "extra_args"), defaults=False),
    "/cohere/v2/chat": Route(extrapolates=False),
    "/cohere/v2/chat/render": Route(extrapolates=False),
    "/generative_scoring": Route(extrapolates=False),
    "/v1/systemone": Route(extrapolates=False),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What the server answers for.

    names     the model names that stand for the pair; each also takes `@…`.
    defaults  the settings of a request that names none.
    refused   fields of a request that this engine cannot take, with the reason.
    sampling  the sampling settings of a request that names none.
    max_sequences  that one request may have generated.
    """

    names: tuple[str, ...]
    defaults: Extrapolation
    refused: Mapping[str, str] = field(default_factory=dict)
    sampling: Mapping[str, float] = field(default_factory=dict)
    max_sequences: int = 128


class Translated(NamedTuple):
    """A request for vLLM, the settings that apply, and the ticket for what the engine measures."""

    body: bytes
    settings: Extrapolation
    ticket: str | None


class Statement(NamedTuple):
    """One setting, as said in one place of a request."""

    setting: str
    value: object
    place: str


def translate(
    body: bytes, route: Route, served: Served, ticket: str | None = None
) -> Translated | None:
    """The request for vLLM; None if it is not for the pair.

    ticket  a fresh one, in case that this request needs one.

    Raises SettingError, whose `name` is the place in the body, for whatever cannot be applied.
    """
    request = parse(body)
    model = _model(request, served) if request is not None else None
    if request is None or model is None:
        return None
    holder = _holder(request, route.carrier)
    if holder is None:
        return None
    statements = [
        *_said_by_name(request, model),
        *_said_by_field(request),
        *_said_by_xargs(holder, route.carrier),
    ]
    defaults = served.defaults if route.extrapolates else Extrapolation()
    settings = _combine(statements, defaults)
    _refuse_unsupported(request, holder, route, settings, served)
    refuse_too_many(request, holder, served.max_sequences)

    if request.get("model"):
        request["model"] = model
    request.pop(FIELD, None)
    if not (settings.gated and route.generates):
        ticket = None
    if route.extrapolates:
        holder[route.carrier[-1]] = _flat(holder, route, settings, served, ticket)
    written = json.dumps(request).encode()
    refuse_unsendable(request, written)
    return Translated(written, settings, ticket)


def _flat(
    holder: Object, route: Route, settings: Extrapolation, served: Served, ticket: str | None
) -> dict[str, Any]:
    """Everything that the engine is told in `vllm_xargs`."""
    xargs = {**(holder.get(route.carrier[-1]) or {}), **settings.to_extra_args()}
    if settings.gated:
        inside = "".join(f"{key}." for key in route.carrier[:-1])
        defaults = served.sampling if route.defaults else {}
        xargs |= move_sampling(holder, xargs, defaults, inside=inside)
    return xargs if ticket is None else xargs | {TICKET: ticket}


def _model(request: Mapping[str, Any], served: Served) -> str | None:
    """The served name that the request's model starts with; None for somebody else's."""
    model = request.get("model")
    if not model:
        return served.names[0]
    if not isinstance(model, str):
        return None
    matching = [name for name in served.names if model == name or model.startswith(name + "@")]
    return max(matching, key=len, default=None)


def _holder(request: Object, carrier: tuple[str, ...]) -> Object | None:
    """The object that has the flat settings; None where vLLM requires one and will say so."""
    holder = request
    for key in carrier[:-1]:
        inner = holder.get(key)
        if not isinstance(inner, Object):
            return None
        holder = inner
    return holder


def _said_by_name(request: Object, model: str) -> Iterator[Statement]:
    said = request.get("model") or model
    refuse_repeated(request, "model", "model")
    if said == model:
        return
    suffix = said.removeprefix(model + "@")
    if suffix in NAMED_STRENGTHS:
        yield Statement("strength", NAMED_STRENGTHS[suffix], "model")
        yield Statement("gate", "none", "model")  # whatever the defaults gate
    elif _NUMBER.fullmatch(suffix):
        yield Statement("strength", float(suffix), "model")
    else:
        forms = ", ".join(f"{model}@{name}" for name in NAMED_STRENGTHS)
        raise SettingError("model", said, f"use {model}, {model}@<strength>, {forms}")


def _said_by_field(request: Object) -> Iterator[Statement]:
    value = request.get(FIELD)
    refuse_repeated(request, FIELD, FIELD)
    if isinstance(value, Object):
        for setting, each in value.items():
            refuse_repeated(value, setting, f"{FIELD}.{setting}")
            yield Statement(setting, each, f"{FIELD}.{setting}")
    elif value is not None:
        yield Statement("strength", value, FIELD)


def _said_by_xargs(holder: Object, carrier: tuple[str, ...]) -> Iterator[Statement]:
    where = ".".join(carrier)
    xargs = holder.get(carrier[-1])
    refuse_repeated(holder, carrier[-1], where)
    if xargs is None:
        return
    if not isinstance(xargs, Object):
        raise SettingError(where, xargs, "must be an object")
    for key in filter(is_ours, xargs):
        refuse_repeated(xargs, key, f"{where}.{key}")
        if key.removeprefix(XARGS_PREFIX) in SAMPLING_SETTINGS:
            continue  # not of the extrapolation: `gated.py`, or the engine refuses it
        yield Statement(key.removeprefix(XARGS_PREFIX), xargs[key], f"{where}.{key}")


def _combine(statements: list[Statement], defaults: Extrapolation) -> Extrapolation:
    """The settings that all statements together ask for."""
    chosen: dict[str, Statement] = {}
    for said in statements:
        try:
            check_setting(said.setting, said.value)
        except SettingError as error:
            raise SettingError(said.place, said.value, error.reason) from error
        first = chosen.setdefault(said.setting, said)
        if first.value != said.value:
            reason = f"disagrees with {first.place}, which says {first.value!r}; say it once"
            raise SettingError(said.place, said.value, reason)
    try:
        return Extrapolation.from_request(
            {setting: said.value for setting, said in chosen.items()}, defaults
        )
    except SettingError as error:
        said_of = chosen.get(error.name)
        place = said_of.place if said_of else f"{FIELD}.{error.name}"
        raise SettingError(place, error.value, error.reason) from error


def _refuse_unsupported(
    request: Mapping[str, Any],
    holder: Mapping[str, Any],
    route: Route,
    settings: Extrapolation,
    served: Served,
) -> None:
    """Raise for what would be answered by another distribution than the one asked for."""
    for name, reason in served.refused.items():
        if holder.get(name) is not None:
            raise SettingError(name, holder[name], reason)
    if not settings.uses_base:
        return
    if not route.extrapolates:
        reason = "this route answers for rlvr only, strength 0; use /v1/completions"
        value = settings.gate if settings.gated else settings.strength
        raise SettingError(FIELD, value, reason)
    # vLLM reads "yes" and 1 as true, so anything that is not plainly off counts as on.
    if request.get("use_beam_search") not in (None, False):
        reason = "beam search drops the strength; sample, or use strength 0"
        raise SettingError("use_beam_search", request["use_beam_search"], reason)
    of_rlvr = "log-probabilities of the prompt are rlvr's; leave out, or use strength 0"
    if holder.get("prompt_logprobs") is not None:
        raise SettingError("prompt_logprobs", holder["prompt_logprobs"], of_rlvr)
    asked = request.get("logprobs")
    # 0 asks for the log-probability of each token itself, so it is not "off" here.
    if request.get("echo") not in (None, False) and not (asked is None or asked is False):
        raise SettingError("echo", request["echo"], of_rlvr)
