"""A run's adapter: put on once, stored where every resumption finds it, and written as LoRA."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from rlvr_decode.training.adapters import ADAPTERS, AdapterConfig, AttachedAdapter
from rlvr_decode.training.adapters.attach import attach
from rlvr_decode.training.adapters.export import export
from rlvr_decode.training.adapters.state import resume, save_state
from rlvr_decode.training.config import Adapter, build
from rlvr_decode.training.policy.model import named
from rlvr_decode.training.run.checkpoint import appearing_whole


def adapter_config(settings: Adapter) -> AdapterConfig:
    """The adapter's own settings; ValueError for an unknown kind or option."""
    if settings.kind not in ADAPTERS:
        raise ValueError(f"adapter.kind={settings.kind!r}: unknown; known: {', '.join(ADAPTERS)}")
    return build(ADAPTERS[settings.kind], settings.options, "adapter.options")


def adapt(
    model: PreTrainedModel, settings: Adapter, *, seed: int, directory: Path
) -> AttachedAdapter:
    """Attach the run's adapter, as `directory` has it or, the first time, newly drawn.

    Checkpoints hold what has been learnt since; what it started from is here once, because a
    sketched SVD drawn again elsewhere would be another adapter.
    """
    config = adapter_config(settings)
    if directory.exists():
        return resume(model, config, directory)
    adapter = attach(model, config, seed=seed)
    with appearing_whole(directory) as scratch:
        save_state(adapter, scratch)
    return adapter


def write_adapter(
    adapter: AttachedAdapter, directory: Path, *, base: str | None, dtype: torch.dtype
) -> None:
    """Write the update as LoRA."""
    base = None if base is None else str(named(base))
    export(adapter, directory, dtype=dtype, base=base)
    for file in directory.iterdir():
        # The weights come out readable by their owner alone, which no package can ship.
        file.chmod(0o644)
