"""What one request says about extrapolation, and the request vLLM gets instead.

A client may speak in three places, all of them optional:

    "extrapolation": 0.5                          the field: a number, or an object of settings
    "model": "tiny@0.5"                           the name: a strength, or @rlvr, or @base
    "vllm_xargs": {"extrapolation_strength": 0.5} vLLM's own way

Two places that speak of one setting must agree; a setting that none names is the pair's default.
vLLM gets the plain model name and every setting in `vllm_xargs`. Pure functions of JSON: HTTP is
in `middleware.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlvr_decode.params import XARGS_PREFIX, Extrapolation, SettingError, is_ours

FIELD = "extrapolation"
NAMED_STRENGTHS = {"rlvr": 0.0, "base": -1.0}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class Route(NamedTuple):
    """How one of vLLM's routes takes settings.

    carrier       the keys that lead to the object of flat settings in its body.
    extrapolates  False where vLLM drops that object, so that only rlvr can answer.
    """

    carrier: tuple[str, ...] = ("vllm_xargs",)
    extrapolates: bool = True


# Every route of vLLM's server that reaches the engine's sampler, or writes what will reach it.
ROUTES = {
    "/v1/chat/completions": Route(),
    "/v1/chat/completions/batch": Route(),
    "/v1/chat/completions/render": Route(),
    "/v1/completions": Route(),
    "/v1/completions/render": Route(),
    "/v1/responses": Route(),
    "/v1/responses/render": Route(),
    "/v1/messages": Route(),
    "/v1/messages/render": Route(),
    "/invocations": Route(),
    "/inference/v1/generate": Route(carrier=("sampling_params", "extra_args")),
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
    """

    names: tuple[str, ...]
    defaults: Extrapolation
    refused: Mapping[str, str] = field(default_factory=dict)


class Statement(NamedTuple):
    """One setting, as said in one place of a request."""

    setting: str
    value: object
    place: str


def translate(body: bytes, route: Route, served: Served) -> tuple[bytes, Extrapolation] | None:
    """The body for vLLM and the settings that apply; None if the request is not for the pair.

    Raises SettingError, whose `name` is the place in the body, for whatever cannot be applied.
    """
    request = _parse(body)
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

    if request.get("model"):
        request["model"] = model
    request.pop(FIELD, None)
    if route.extrapolates:
        key = route.carrier[-1]
        holder[key] = {**(holder.get(key) or {}), **settings.to_extra_args()}
    return json.dumps(request).encode(), settings


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys came more than once."""

    repeated: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    result = _Object(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        result.repeated = frozenset(key for key in keys if keys.count(key) > 1)
    return result


def _parse(body: bytes) -> _Object | None:
    """The body's JSON object; None for anything else, which vLLM refuses in its own words."""
    try:
        value = json.loads(body, object_pairs_hook=_object)
    except RecursionError:
        raise SettingError("body", body[:20], "nested too deeply") from None
    except ValueError:
        return None
    return value if isinstance(value, _Object) else None


def _model(request: Mapping[str, Any], served: Served) -> str | None:
    """The served name that the request's model starts with; None for somebody else's."""
    model = request.get("model")
    if not model:
        return served.names[0]
    if not isinstance(model, str):
        return None
    matching = [name for name in served.names if model == name or model.startswith(name + "@")]
    return max(matching, key=len, default=None)


def _holder(request: _Object, carrier: tuple[str, ...]) -> _Object | None:
    """The object that has the flat settings; None where vLLM requires one and will say so."""
    holder = request
    for key in carrier[:-1]:
        inner = holder.get(key)
        if not isinstance(inner, _Object):
            return None
        holder = inner
    return holder


def _said_by_name(request: _Object, model: str) -> Iterator[Statement]:
    said = request.get("model") or model
    _refuse_repeated(request, "model", "model")
    if said == model:
        return
    suffix = said.removeprefix(model + "@")
    if suffix in NAMED_STRENGTHS:
        yield Statement("strength", NAMED_STRENGTHS[suffix], "model")
    elif _NUMBER.fullmatch(suffix):
        yield Statement("strength", float(suffix), "model")
    else:
        forms = ", ".join(f"{model}@{name}" for name in NAMED_STRENGTHS)
        raise SettingError("model", said, f"use {model}, {model}@<strength>, {forms}")


def _said_by_field(request: _Object) -> Iterator[Statement]:
    value = request.get(FIELD)
    _refuse_repeated(request, FIELD, FIELD)
    if isinstance(value, _Object):
        for setting, each in value.items():
            _refuse_repeated(value, setting, f"{FIELD}.{setting}")
            yield Statement(setting, each, f"{FIELD}.{setting}")
    elif value is not None:
        yield Statement("strength", value, FIELD)


def _said_by_xargs(holder: _Object, carrier: tuple[str, ...]) -> Iterator[Statement]:
    where = ".".join(carrier)
    xargs = holder.get(carrier[-1])
    _refuse_repeated(holder, carrier[-1], where)
    if xargs is None:
        return
    if not isinstance(xargs, _Object):
        raise SettingError(where, xargs, "must be an object")
    for key in filter(is_ours, xargs):
        _refuse_repeated(xargs, key, f"{where}.{key}")
        yield Statement(key.removeprefix(XARGS_PREFIX), xargs[key], f"{where}.{key}")


def _refuse_repeated(values: _Object, key: str, place: str) -> None:
    if key in values.repeated:
        raise SettingError(place, values[key], "given twice in one object; give it once")


def _combine(statements: list[Statement], defaults: Extrapolation) -> Extrapolation:
    """The settings that all statements together ask for."""
    chosen: dict[str, Statement] = {}
    for said in statements:
        try:
            Extrapolation.from_request({said.setting: said.value}, defaults)
        except SettingError as error:
            raise SettingError(said.place, said.value, error.reason) from error
        first = chosen.setdefault(said.setting, said)
        if first.value != said.value:
            reason = f"disagrees with {first.place}, which says {first.value!r}; say it once"
            raise SettingError(said.place, said.value, reason)
    return Extrapolation.from_request(
        {setting: said.value for setting, said in chosen.items()}, defaults
    )


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
    if settings.strength == 0:
        return
    if not route.extrapolates:
        reason = "this route answers for rlvr only, strength 0; use /v1/completions"
        raise SettingError(FIELD, settings.strength, reason)
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
