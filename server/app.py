"""The server: vLLM's engine and OpenAI app in this process, with the pair's field and routes.

`main` parses, starts the engine, serves until SIGINT or SIGTERM, and leaves no process behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import uvicorn
import uvloop
from fastapi import FastAPI
from starlette.middleware import Middleware
from vllm import envs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import serve_http, setup_server
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

from rlvr_decode.engine.launch import bound_kept_products
from rlvr_decode.pair import Pair
from rlvr_decode.server.absent import AbsentMiddleware
from rlvr_decode.server.arguments import Parsed, parse
from rlvr_decode.server.delta import delta_routes
from rlvr_decode.server.engine import Engine, end_after_death, queue_of, refused_fields, running
from rlvr_decode.server.errors import ErrorMiddleware
from rlvr_decode.server.heads import protocol_for
from rlvr_decode.server.interventions import rates_from
from rlvr_decode.server.key import KeyMiddleware, keys
from rlvr_decode.server.limits import MAX_N, BodyLimit, HeaderLimit, Limits, limits_from
from rlvr_decode.server.metrics import METRICS
from rlvr_decode.server.middleware import ExtrapolationMiddleware
from rlvr_decode.server.playground import page_routes
from rlvr_decode.server.request import Served
from rlvr_decode.server.routes import pair_routes
from rlvr_decode.server.schema import correct_schema
from rlvr_decode.server.trace import TraceMiddleware, scorer_from

ENDING = (signal.SIGTERM, signal.SIGINT)
GRACE = 10  # seconds that open connections get at the end


def main(argv: Sequence[str]) -> int:
    """`rlvr-decode serve PAIR [any vLLM engine flag]`."""
    cli_env_setup()  # type: ignore[no-untyped-call]
    return uvloop.run(serve(parse(argv)))


async def serve(parsed: Parsed) -> int:
    """Serve a pair until a signal ends it, which is 0, or the engine dies, which is 1."""
    pair, names, args = parsed
    bound_kept_products()
    os.environ[MAX_N] = str(args.max_sequences)  # on routes that bring no settings of ours
    # Until uvicorn runs, and handles signals itself, they end the start-up.
    for number in ENDING:
        signal.signal(number, _end)
    # Bound before the engine loads, so that a taken port is known at once.
    address, sock = setup_server(args, reuse_port=False)
    async with running(args) as client:
        tasks = await client.get_supported_tasks()
        app = build_app(args, tasks, client.model_config)
        refused = refused_fields(client.vllm_config)
        limits = limits_from(args, queue_of(client.vllm_config))
        served = Served(
            names=names,
            defaults=pair.defaults,
            refused=refused,
            sampling=client.model_config.get_diff_sampling_param(),
            max_sequences=limits.max_sequences,
        )
        attach(app, pair, served, limits)
        await init_app_state(client, app.state, args, tasks)
        background = [asyncio.create_task(_greet(app, address, served))]
        if not envs.VLLM_KEEP_ALIVE_ON_ENGINE_DEATH:
            # vLLM would end the server before anybody could ask it why.
            os.environ["VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"] = "1"
            background.append(asyncio.create_task(_watch(app, client)))
        shutdown = await serve_http(app, sock, **_uvicorn_settings(args, limits))
        for task in background:
            task.cancel()
        died = client.died
    # vLLM's order: connections are closed once the engine is gone.
    await shutdown
    sock.close()
    if died:
        print("the engine died; the server ends with it", file=sys.stderr, flush=True)
    return int(died)


def attach(app: FastAPI, pair: Pair, served: Served, limits: Limits) -> None:
    """Add the field, the routes and the limits to vLLM's app."""
    for router in (pair_routes(pair, served), delta_routes(served), page_routes()):
        app.include_router(router)
    correct_schema(app)
    # Appended, so innermost: authentication and CORS come before it. vLLM has built the stack by
    # now, and Starlette adds to one that is built only when asked to build it again.
    app.user_middleware.append(Middleware(KeyMiddleware, keys=keys(app.state.args)))
    app.user_middleware.append(Middleware(BodyLimit, limits=limits))
    app.user_middleware.append(Middleware(TraceMiddleware, score=scorer_from(app.state)))
    app.user_middleware.append(
        Middleware(
            ExtrapolationMiddleware, served=served, rates=rates_from(app.state), metrics=METRICS
        )
    )
    app.user_middleware.append(Middleware(AbsentMiddleware))
    # Around Starlette's own layers too, which answer what no other did.
    stack = HeaderLimit(app.build_middleware_stack(), limits=limits)
    app.middleware_stack = ErrorMiddleware(stack, retry_after=limits.retry_after, metrics=METRICS)


async def _started(app: FastAPI) -> uvicorn.Server:
    while not (hasattr(app.state, "server") and app.state.server.started):
        await asyncio.sleep(0.05)
    server: uvicorn.Server = app.state.server
    return server


async def _watch(app: FastAPI, client: Engine) -> None:
    await end_after_death(client, await _started(app))


async def _greet(app: FastAPI, address: str, served: Served) -> None:
    """Say that the server is up, with a line to try, once it is."""
    await _started(app)
    body = {"model": served.names[0], "prompt": "517+486=?\n", "extrapolation": 0.5}
    request = f"-H 'content-type: application/json' -d '{json.dumps(body)}'"
    told = f"serving on {address}; open it in a browser, or try"
    print(f"\n{told}\n\n  curl {address}/v1/completions {request}\n", flush=True)


def _uvicorn_settings(args: argparse.Namespace, limits: Limits) -> dict[str, Any]:
    """vLLM's flags for uvicorn, as vLLM passes them, and our parser of heads."""
    settings = {
        name: getattr(args, name)
        for name in (
            "enable_ssl_refresh",
            "host",
            "port",
            "ssl_keyfile",
            "ssl_certfile",
            "ssl_ca_certs",
            "ssl_cert_reqs",
            "ssl_ciphers",
        )
    }
    if (log_config := get_uvicorn_log_config(args)) is not None:
        settings["log_config"] = log_config
    return settings | {
        "log_level": args.uvicorn_log_level,
        "access_log": not args.disable_uvicorn_access_log,
        "timeout_keep_alive": envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        # A client that does not read its answer keeps nobody from ending.
        "timeout_graceful_shutdown": GRACE,
        "http": protocol_for(limits.max_header_bytes),
    }


def _end(*_: object) -> NoReturn:
    # Another signal, of someone impatient, would leave the engine's processes behind.
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    # Not KeyboardInterrupt: where vLLM waits for its engine it drops that, and goes on.
    raise SystemExit(130)
