"""The server: vLLM's engine and OpenAI app in this process, with the pair's field and routes.

`main` parses, starts the engine, serves until SIGINT or SIGTERM, and leaves no process behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import uvloop
from fastapi import FastAPI
from starlette.middleware import Middleware
from vllm import envs
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import serve_http, setup_server
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from rlvr_decode.engine.refusals import refuse_unsupported, runs_v2
from rlvr_decode.pair import Pair
from rlvr_decode.server.absent import AbsentMiddleware
from rlvr_decode.server.arguments import Parsed, parse
from rlvr_decode.server.delta import delta_routes
from rlvr_decode.server.interventions import rates_from
from rlvr_decode.server.metrics import METRICS
from rlvr_decode.server.middleware import ExtrapolationMiddleware
from rlvr_decode.server.playground import page_routes
from rlvr_decode.server.request import Served
from rlvr_decode.server.routes import pair_routes
from rlvr_decode.server.schema import correct_schema
from rlvr_decode.server.trace import TraceMiddleware, scorer_from

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def main(argv: Sequence[str]) -> int:
    """`rlvr-decode serve PAIR [any vLLM engine flag]`."""
    cli_env_setup()  # type: ignore[no-untyped-call]
    parsed = parse(argv)
    try:
        uvloop.run(serve(parsed))
    except KeyboardInterrupt:
        return 130
    return 0


async def serve(parsed: Parsed) -> None:
    """Serve a pair until a signal ends it."""
    pair, names, args = parsed
    # Until uvicorn runs, and handles signals itself, SIGTERM ends the start-up as SIGINT does.
    signal.signal(signal.SIGTERM, _interrupt)
    # Bound before the engine loads, so that a taken port is known at once.
    address, sock = setup_server(args, reuse_port=False)
    async with engine(args) as client:
        tasks = await client.get_supported_tasks()
        app = build_app(args, tasks, client.model_config)
        refused = refused_fields(client.vllm_config)
        served = Served(
            names=names,
            defaults=pair.defaults,
            refused=refused,
            sampling=client.model_config.get_diff_sampling_param(),
        )
        attach(app, pair, served)
        await init_app_state(client, app.state, args, tasks)
        greeting = asyncio.create_task(_greet(app, address, served))
        shutdown = await serve_http(app, sock, **_uvicorn_settings(args))
        greeting.cancel()
    # vLLM's order: connections are closed once the engine is gone.
    await shutdown
    sock.close()


@asynccontextmanager
async def engine(args: argparse.Namespace) -> AsyncIterator[AsyncLLM]:
    """The running engine, shut down on the way out."""
    engine_args = AsyncEngineArgs.from_cli_args(args)
    usage = UsageContext.OPENAI_API_SERVER
    config = engine_args.create_engine_config(usage)
    # The engine refuses too, but in another process and after loading.
    refuse_unsupported(config)
    client = AsyncLLM.from_vllm_config(
        config,
        usage_context=usage,
        enable_log_requests=engine_args.enable_log_requests,
        aggregate_engine_logging=engine_args.aggregate_engine_logging,
        disable_log_stats=engine_args.disable_log_stats,
    )
    try:
        await client.reset_mm_cache()
        yield client
    finally:
        client.shutdown(timeout=config.shutdown_timeout)


def refused_fields(config: VllmConfig) -> dict[str, str]:
    """Fields of a request that would end this engine, with the reason."""
    scheduler = config.scheduler_config
    splits = scheduler.enable_chunked_prefill or scheduler.long_prefill_token_threshold > 0
    if current_platform.is_cpu() and not runs_v2(config) and splits:
        reason = (
            "vLLM's V1 runner on a CPU dies of a seeded request whose prompt is split; start it"
        )
        return {"seed": f"{reason} without chunked prefill"}
    return {}


def attach(app: FastAPI, pair: Pair, served: Served) -> None:
    """Add the field and the routes to vLLM's app."""
    for router in (pair_routes(pair, served), delta_routes(served), page_routes()):
        app.include_router(router)
    correct_schema(app)
    # Appended, so innermost: authentication and CORS come before it. vLLM has built the stack by
    # now, and Starlette adds to one that is built only when asked to build it again.
    app.user_middleware.append(Middleware(TraceMiddleware, score=scorer_from(app.state)))
    app.user_middleware.append(
        Middleware(
            ExtrapolationMiddleware, served=served, rates=rates_from(app.state), metrics=METRICS
        )
    )
    app.user_middleware.append(Middleware(AbsentMiddleware))
    app.middleware_stack = app.build_middleware_stack()


async def _greet(app: FastAPI, address: str, served: Served) -> None:
    """Say that the server is up, with a line to try, once it is."""
    while not (hasattr(app.state, "server") and app.state.server.started):
        await asyncio.sleep(0.05)
    body = {"model": served.names[0], "prompt": "517+486=?\n", "extrapolation": 0.5}
    request = f"-H 'content-type: application/json' -d '{json.dumps(body)}'"
    told = f"serving on {address}; open it in a browser, or try"
    print(f"\n{told}\n\n  curl {address}/v1/completions {request}\n", flush=True)


def _uvicorn_settings(args: argparse.Namespace) -> dict[str, Any]:
    """vLLM's flags for uvicorn, as vLLM passes them."""
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
            "h11_max_incomplete_event_size",
            "h11_max_header_count",
        )
    }
    if (log_config := get_uvicorn_log_config(args)) is not None:
        settings["log_config"] = log_config
    return settings | {
        "log_level": args.uvicorn_log_level,
        "access_log": not args.disable_uvicorn_access_log,
        "timeout_keep_alive": envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
    }


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
