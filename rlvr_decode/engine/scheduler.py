"""vLLM's own scheduler, which also keeps the KV blocks of plain requests apart from all others.

Name it by `--scheduler-cls rlvr_decode.engine.scheduler.pair_scheduler`; without it the engine is
as exact, but runs base for plain requests too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from rlvr_decode.engine.plain import is_plain, mark, salted

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.request import Request


class PairScheduler(Scheduler):
    """Scheduler that marks and separates plain requests."""

    def add_request(self, request: Request) -> None:
        separate(request)
        super().add_request(request)


class AsyncPairScheduler(AsyncScheduler):
    """The same for asynchronous scheduling."""

    def add_request(self, request: Request) -> None:
        separate(request)
        super().add_request(request)


def pair_scheduler(*, vllm_config: VllmConfig, **arguments: Any) -> Scheduler:
    """What vLLM calls to make its scheduler; only now is it decided which kind that is."""
    asynchronous = vllm_config.scheduler_config.async_scheduling
    kind = AsyncPairScheduler if asynchronous else PairScheduler
    return kind(vllm_config=vllm_config, **arguments)


def separate(request: Request) -> None:
    """Mark a request as plain or not, and salt the hashes of its blocks accordingly."""
    assert request.sampling_params is not None
    # The strength of a session may change with its next input, but its blocks stay.
    plain = is_plain(request.sampling_params) and not request.resumable
    mark(request.sampling_params, plain)
    request.cache_salt = salted(request.cache_salt, plain)
    request.block_hashes.clear()
    request.update_block_hashes()
