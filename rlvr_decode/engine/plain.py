"""Plain requests ask for rlvr as it is, and should cost what rlvr alone costs.

A step of nothing but plain requests runs without base, so their KV blocks have no base half. The
scheduler therefore salts the hashes of their blocks, by which vLLM shares prefixes, and marks what
it has salted; workers leave base out for marked requests only. A client cannot set the mark: where
the scheduler is ours it overwrites every one, elsewhere no worker looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlvr_decode.engine.admission import scores_prompt
from rlvr_decode.params import Extrapolation

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

SCHEDULER = "rlvr_decode.engine.scheduler.pair_scheduler"
MARK = "rlvr_decode_plain"


def is_plain(params: SamplingParams) -> bool:
    """Whether a request never looks at base: strength 0, no gate, no scores of its prompt."""
    extrapolation = Extrapolation.from_extra_args(params.extra_args)
    return not extrapolation.uses_base and not scores_prompt(params)


def mark(params: SamplingParams, plain: bool) -> None:
    """Tell the workers, in place of whatever the request said itself."""
    others = {key: value for key, value in (params.extra_args or {}).items() if key != MARK}
    params.extra_args = others | ({MARK: True} if plain else {})


def is_marked(params: SamplingParams) -> bool:
    return MARK in (params.extra_args or {})


def salted(cache_salt: str | None, plain: bool) -> str | None:
    """A salt that no request of the other kind can have, whatever clients choose as theirs."""
    if plain:
        return f"plain:{cache_salt or ''}"
    return f"pair:{cache_salt}" if cache_salt else None


def separates_plain(config: VllmConfig) -> bool:
    """Whether no block of a plain request of this engine can reach another request.

    A KV connector may share blocks by rules of its own.
    """
    return config.scheduler_config.scheduler_cls == SCHEDULER and config.kv_transfer_config is None
