"""The routes beside vLLM's own: what is served."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from rlvr_decode.pair import Checkpoint, Pair
from rlvr_decode.params import GATES, PLAUSIBILITY_RANGE, STRENGTH_RANGE
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
        "limits": {"strength": list(STRENGTH_RANGE), "plausibility": list(PLAUSIBILITY_RANGE)},
        "gates": list(GATES),
        "routes": [path for path, route in ROUTES.items() if route.extrapolates],
        "refused": dict(served.refused),
        "stop_token_ids": list(pair.stop_token_ids),
        "provenance": dict(pair.provenance),
    }


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    place = {"hub": checkpoint.hub, "revision": checkpoint.revision} if checkpoint.hub else {}
    return {"kind": checkpoint.kind, **place, "sha256": dict(checkpoint.sha256)}
