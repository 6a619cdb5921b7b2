"""The engine behind the server: vLLM's, with a bounded queue, and known to have ended or died."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from rlvr_decode.engine.refusals import refuse_unsupported, runs_v2
from rlvr_decode.server.scores import ADMITTED

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# As many requests wait as run; and of prompts, what these many steps read.
WAITING_PER_RUNNING = 1
QUEUED_STEPS = 32
NOTICE = 3.0  # seconds


class Engine(AsyncLLM):
    """vLLM's engine, which knows whether its end was asked for."""

    ended = False

    def shutdown(self, timeout: float | None = None) -> None:
        self.ended = True
        super().shutdown(timeout=timeout)

    @property
    def died(self) -> bool:
        """Whether the engine's process is gone though nobody ended it."""
        return bool(self.errored) and not self.ended

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """vLLM's, except for the trace of an answer: its request was admitted before."""
        if request_id is None or not request_id.startswith(ADMITTED):
            super().check_admission(n, request_id)


@asynccontextmanager
async def running(args: argparse.Namespace) -> AsyncIterator[Engine]:
    """The running engine, shut down on the way out."""
    engine_args = AsyncEngineArgs.from_cli_args(args)
    usage = UsageContext.OPENAI_API_SERVER
    config = engine_args.create_engine_config(usage)
    # The engine refuses too, but in another process and after loading.
    refuse_unsupported(config)
    bound_queue(config)
    client = Engine.from_vllm_config(
        config,
        usage_context=usage,
        enable_log_requests=engine_args.enable_log_requests,
        aggregate_engine_logging=engine_args.aggregate_engine_logging,
        disable_log_stats=engine_args.disable_log_stats,
    )
    assert isinstance(client, Engine)
    try:
        await client.reset_mm_cache()
        yield client
    finally:
        client.shutdown(timeout=config.shutdown_timeout)


async def end_after_death(client: Engine, server: uvicorn.Server) -> None:
    """End the server some seconds after its engine, so that /health can be heard to say 503."""
    while not client.died:
        await asyncio.sleep(0.1)
    await asyncio.sleep(NOTICE)
    server.should_exit = True


def bound_queue(config: VllmConfig) -> None:
    """Set the limits of vLLM's queue that the user left open; by default it has none.

    Beyond them a request is answered 503 at once, not served late.
    """
    scheduler = config.scheduler_config
    if scheduler.max_num_queued_reqs is None:
        slots = scheduler.max_num_seqs * config.parallel_config.data_parallel_size
        scheduler.max_num_queued_reqs = (1 + WAITING_PER_RUNNING) * slots
    if scheduler.max_num_queued_tokens is None:
        scheduler.max_num_queued_tokens = QUEUED_STEPS * scheduler.max_num_batched_tokens


def queue_of(config: VllmConfig) -> int:
    """How many requests may be in the engine at once."""
    bound = config.scheduler_config.max_num_queued_reqs
    assert bound is not None, "set by `bound_queue`"
    return bound


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
