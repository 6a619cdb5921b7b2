"""From a pair to the arguments of a vLLM engine, the same for the server and offline use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlvr_decode.engine.refusals import PROCESSOR

if TYPE_CHECKING:
    from rlvr_decode.pair import Pair


def engine_args(pair: Pair, **overrides: Any) -> dict[str, Any]:
    """Arguments for `vllm.LLM` or `vllm.EngineArgs` that serve a pair.

    >>> LLM(**engine_args(Pair.open("tiny"), max_model_len=256))  # doctest: +SKIP

    `overrides` are further engine arguments and win. The weights keep the dtype they are stored
    in: Δ is a small difference of two large numbers. Raises ValueError for an override that
    replaces what makes the engine a pair.
    """
    config = pair.rlvr_config
    arguments: dict[str, Any] = {
        "model": pair.rlvr_path,
        "revision": pair.rlvr_revision,
        "logits_processors": [PROCESSOR],
        "hf_overrides": {
            "architectures": ["PairedForCausalLM"],
            "rlvr_architectures": config["architectures"],
            "rlvr_base_model": pair.base_path,
            "rlvr_base_revision": pair.base_revision,
            "rlvr_base_vocab_size": pair.base_config["vocab_size"],
        },
        "dtype": str(config.get("dtype") or "auto"),
        # The union of both models' stops: either may have been taught another end of sequence.
        "override_generation_config": {"eos_token_id": list(pair.stop_token_ids)},
    }
    if taken := overrides.keys() & {"model", "revision", "hf_overrides", "logits_processors"}:
        raise ValueError(f"{', '.join(sorted(taken))}: set by the pair; leave it out")
    return arguments | overrides
