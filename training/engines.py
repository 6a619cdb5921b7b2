"""The rollout engines a recipe can name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rlvr_decode.training.config import Train
from rlvr_decode.training.policy.model import located
from rlvr_decode.training.policy.policies import Policies
from rlvr_decode.training.rollout.rollout import RolloutEngine, TransformersRollout


def make_engine(
    config: Train, policies: Policies, base: str | Path, *, layer: int | None
) -> RolloutEngine:
    """The recipe's engine.

    layer  whose hidden states are kept, by an engine that can; of the others' rollouts they are
           computed when they are needed.
    """
    return ENGINES[config.rollout.engine](config, policies, base, layer)


def check_engine(config: Train) -> None:
    """ValueError for an engine that does not exist, or that cannot do what the recipe asks."""
    name = config.rollout.engine
    if name not in ENGINES:
        raise ValueError(f"rollout.engine={name!r}: unknown; known: {', '.join(ENGINES)}")


def _transformers(
    config: Train, policies: Policies, base: str | Path, layer: int | None
) -> RolloutEngine:
    return TransformersRollout(model=policies.policy, tokenizer=policies.tokenizer, layer=layer)


def _vllm(config: Train, policies: Policies, base: str | Path, layer: int | None) -> RolloutEngine:
    # Imported late: vLLM takes seconds to import, and may not be installed.
    from rlvr_decode.training.rollout.vllm import VLLMRollout

    return VLLMRollout(
        policy=policies.policy,
        tokenizer=policies.tokenizer,
        adapter=policies.adapter,
        base=located(base),
        dtype="bfloat16" if config.optim.bf16 else "float32",
        seed=config.seed,
        processes=policies.processes.size,
        time_out=config.rollout.time_out,
        options=config.rollout.vllm,
    )


ENGINES: dict[str, Callable[[Train, Policies, str | Path, int | None], RolloutEngine]] = {
    "transformers": _transformers,
    "vllm": _vllm,
}
