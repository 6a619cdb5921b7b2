"""From a pair to the arguments of a vLLM engine, the same for the server and offline use."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlvr_decode.engine.plain import SCHEDULER
from rlvr_decode.engine.refusals import PROCESSOR
from rlvr_decode.engine.side_channel import EXTENSION

if TYPE_CHECKING:
    from rlvr_decode.pair import Pair

# What makes the engine a pair; an override would make it something else.
OWNED = frozenset(
    {"model", "revision", "tokenizer", "hf_overrides", "logits_processors", "worker_extension_cls"}
)


def engine_args(pair: Pair, **overrides: Any) -> dict[str, Any]:
    """Arguments for `vllm.LLM` or `vllm.EngineArgs` that serve a pair.

    >>> LLM(**engine_args(Pair.open("tiny"), max_model_len=256))  # doctest: +SKIP

    overrides  further engine arguments; they win over the defaults chosen here: the dtype the
               weights are stored in, because Δ is a small difference of large numbers.

    Raises ValueError for an override of what makes the engine a pair.
    """
    if taken := sorted(OWNED & overrides.keys()):
        raise ValueError(f"{', '.join(taken)}: set by the pair, leave out; serve another pair")
    model, overrides_of_config = _models(pair)
    config = _config(model)
    return {
        "model": str(model),
        "logits_processors": [PROCESSOR],
        "scheduler_cls": SCHEDULER,
        "worker_extension_cls": EXTENSION,
        "hf_overrides": {"rlvr_architectures": config["architectures"], **overrides_of_config},
        "dtype": config.get("dtype") or config.get("torch_dtype") or "auto",
        # Either model may have been taught another end of sequence. (vLLM takes sampling
        # defaults from `override_generation_config`, but no stops.)
        "generation_config": str(pair.generation_config),
        # Never a pickle.
        "load_format": "safetensors",
        **_cpu_defaults(overrides),
        **overrides,
    }


def bound_kept_products() -> None:
    """Let oneDNN keep the code of 256 shapes of products, unless the environment says otherwise.

    By default it keeps 1024: a busy server on a CPU grows by 270 MB before it stops growing. To be
    called before a process, or the one that starts it, computes anything.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def _models(pair: Pair) -> tuple[Path, dict[str, Any]]:
    """The engine's own model, and how its config tells `PairModel` of the other one."""
    base, rlvr = pair.base.fetch(), pair.rlvr.fetch()
    if pair.rlvr.kind == "adapter":
        return base, {"architectures": ["AdapterPairForCausalLM"], "rlvr_adapter": str(rlvr)}
    return rlvr, {
        "architectures": ["PairedForCausalLM"],
        "rlvr_base_model": str(base),
        "rlvr_base_vocab_size": _config(base)["vocab_size"],
    }


def _cpu_defaults(overrides: dict[str, Any]) -> dict[str, Any]:
    """On a CPU, a share of memory that a desk computer has free, and prompts in one piece.

    vLLM's V1 runner dies on a seeded request whose prompt is cut into chunks.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return {}
    chosen: dict[str, Any] = {"gpu_memory_utilization": 0.3}
    if "max_num_batched_tokens" not in overrides:
        chosen["enable_chunked_prefill"] = False
    return chosen


def _config(directory: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return values
