"""The app's OpenAPI schema as it is here: with the request field, typed, its bounds and words.

vLLM's own models describe every route's body but know nothing of `extrapolation`, which
`middleware.py` takes out before they see it. Documentation pages, generated clients and fuzzers
read the schema, so it says what that middleware takes.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from rlvr_decode.params import (
    GATES,
    PLAUSIBILITY_RANGE,
    PRIMARIES,
    STRENGTH_RANGE,
    THRESHOLD_RANGES,
)
from rlvr_decode.server.absent import ABSENT
from rlvr_decode.server.request import FIELD, ROUTES

NAME = "Extrapolation"
_REFERENCE = {"$ref": f"#/components/schemas/{NAME}"}
_BODIES = "#/components/schemas/"


def correct_schema(app: FastAPI) -> None:
    """Have `app.openapi()`, and so /openapi.json and /docs, say what this server takes."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        made = app.openapi_schema is None
        schema = plain()  # FastAPI makes it once and keeps it
        if made:
            _correct(schema)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _correct(schema: dict[str, Any]) -> None:
    for path in ABSENT & schema["paths"].keys():
        del schema["paths"][path]
    schemas = schema["components"]["schemas"]
    schemas[NAME] = field_schema()
    for path, route in ROUTES.items():
        if route.extrapolates and (body := _body(schema, path)) is not None:
            schemas[body]["properties"][FIELD] = {"anyOf": [_REFERENCE, {"type": "null"}]}


def _body(schema: dict[str, Any], path: str) -> str | None:
    """The name of the model of a route's body; None for a route that is off, or takes any JSON."""
    content = schema["paths"].get(path, {}).get("post", {}).get("requestBody", {}).get("content")
    if content is None:
        return None
    reference: str = content["application/json"]["schema"]["$ref"]
    return reference.removeprefix(_BODIES)


def field_schema() -> dict[str, Any]:
    """JSON Schema of the field: the strength alone, or an object of settings."""
    strength = _number(STRENGTH_RANGE, "-1 is base, 0 is rlvr, above 0 goes beyond")
    permitted = [f"{gate} {low:g} to {high:.4g}" for gate, (low, high) in THRESHOLD_RANGES.items()]
    low, high = zip(*THRESHOLD_RANGES.values(), strict=True)
    threshold = _number(
        (min(low), max(high)), "required by the gates that compare: " + ", ".join(permitted)
    )
    settings = {
        "strength": strength,
        "plausibility": _number(
            PLAUSIBILITY_RANGE, "keeps tokens with p_rlvr >= plausibility * max p_rlvr"
        ),
        "gate": {"type": "string", "enum": list(GATES), "description": "where to extrapolate"},
        "threshold": {"anyOf": [threshold, {"type": "null"}]},
        "primary": {
            "type": "string",
            "enum": list(PRIMARIES),
            "description": "with a gate: the model that has the first draw",
        },
        "trace": {
            "type": "boolean",
            "description": "completions and chats: what both models say of every token",
        },
    }
    return {
        "title": NAME,
        "description": "How far to go along the direction that RLVR taught; what it leaves out is "
        "the pair's default.",
        "anyOf": [
            strength,
            {"type": "object", "properties": settings, "additionalProperties": False},
        ],
        "examples": [0.5, {"strength": 0.5, "plausibility": 0.05}],
    }


def _number(permitted: tuple[float, float], description: str) -> dict[str, Any]:
    low, high = permitted
    return {"type": "number", "minimum": low, "maximum": high, "description": description}
