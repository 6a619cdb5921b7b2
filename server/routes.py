"""The routes beside vLLM's own: what is served."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from rlvr_decode import fetched
from rlvr_decode.pair import Checkpoint, Pair
from rlvr_decode.params import (
    GATES,
    PLAUSIBILITY_RANGE,
    PRIMARIES,
    STRENGTH_RANGE,
    THRESHOLD_RANGES,
)
from rlvr_decode.server.request import NAMED_STRENGTHS, ROUTES, Served


def pair_routes(pair: Pair, served: Served) -> APIRouter:
    """GET /v1/pair."""
    answer = describe(pair, served)
    router = APIRouter()

    @router.get("/v1/pair", summary="The pair that is served, its defaults and limits")
    async def get_pair() -> dict[str, Any]:
        return answer

    return router


def describe(pair: Pair, served: Served) -> dict[str, Any]:
    """What a client needs to know of a pair; no path of the server's disk is in it."""
    name = served.names[0]
    return {
        "object": "pair",
        "name": pair.name,
        "models": [*served.names, *(f"{name}@{suffix}" for suffix in NAMED_STRENGTHS)],
        "base": _describe(pair.base),
        "rlvr": _describe(pair.rlvr),
        "defaults": asdict(served.defaults),
        "limits": {
            "strength": list(STRENGTH_RANGE),
            "plausibility": list(PLAUSIBILITY_RANGE),
            "threshold": {gate: list(allowed) for gate, allowed in THRESHOLD_RANGES.items()},
            "sequences": served.max_sequences,
        },
        "gates": list(GATES),
        "primaries": list(PRIMARIES),
        "routes": [*(path for path, route in ROUTES.items() if route.extrapolates), "/v1/delta"],
        "refused": dict(served.refused),
        "stop_token_ids": list(pair.stop_token_ids),
        "chat": _has_chat_template(pair),
        "examples": list(pair.provenance.get("examples", ())),
        "provenance": dict(pair.provenance),
    }


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    place = {"hub": checkpoint.hub, "revision": checkpoint.revision} if checkpoint.hub else {}
    if checkpoint.fetched is not None:
        package = str(fetched.CHECKPOINTS[checkpoint.fetched])
        place = {"fetched": checkpoint.fetched, "package": package}
    return {"kind": checkpoint.kind, **place, "sha256": dict(checkpoint.sha256)}


def _has_chat_template(pair: Pair) -> bool:
    directory = pair.tokenizer_directory
    if (directory / "chat_template.jinja").exists():
        return True
    config = directory / "tokenizer_config.json"
    return config.exists() and "chat_template" in json.loads(config.read_text(encoding="utf-8"))
