"""Save an adapter in training and go on from it: anchors and shifts, in full precision."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlvr_decode.training.adapters.attach import FACTORS, AttachedAdapter, attach_with
from rlvr_decode.training.adapters.config import AdapterConfig, Anchors

SETTINGS_FILE = "adapter_state.json"
FACTORS_FILE = "factors.safetensors"


def save_state(adapter: AttachedAdapter, directory: str | Path) -> Path:
    """Write the adapter's factors and settings; returns the directory.

    The anchors go with them: computed anew on another machine they would differ, and the same
    shifts would then be another update.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(factor_tensors(adapter), directory / FACTORS_FILE)
    settings = {
        "config": _settings(adapter.config),
        "seed": adapter.seed,
        "base_checksum": adapter.base_checksum,
    }
    (directory / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")
    return directory


def factor_tensors(adapter: AttachedAdapter) -> dict[str, Tensor]:
    """Every layer's anchor_A, anchor_B (where not zero), shift_A and shift_B, copied to the CPU."""
    return {
        f"{name}.{factor}": tensor.detach().to("cpu", copy=True).contiguous()
        for name, layer in adapter.layers.items()
        for factor in FACTORS
        if (tensor := getattr(layer, factor)) is not None
    }


def resume(model: nn.Module, config: AdapterConfig, directory: str | Path) -> AttachedAdapter:
    """Attach a saved adapter to its base model, to the bits it was saved with.

    Raises ValueError when the settings or the base model are not those of the saved adapter, or
    its factors are not the model's, naming what differs.
    """
    directory = Path(directory)
    saved = json.loads((directory / SETTINGS_FILE).read_text())
    factors = load_file(directory / FACTORS_FILE)
    _check_same(saved["config"], _settings(config), directory)

    def stored(name: str, weight_MN: Tensor) -> Anchors:
        if f"{name}.anchor_A" not in factors:
            raise ValueError(f"{directory}: no factors for {name}; it belongs to another model")
        parts = (factors.get(f"{name}.{factor}") for factor in ("anchor_A", "anchor_B"))
        A_RN, B_MR = (part if part is None else part.to(weight_MN.device) for part in parts)
        assert A_RN is not None
        return Anchors(A_RN, B_MR)

    adapter = attach_with(model, config, seed=saved["seed"], anchors_of=stored)
    if adapter.base_checksum != saved["base_checksum"]:
        adapter.detach()
        raise ValueError(
            f"{directory} was trained on another base model: checksum {saved['base_checksum']}, "
            f"this one has {adapter.base_checksum}"
        )
    load_shifts(adapter, factors)
    return adapter


@torch.no_grad()
def load_shifts(adapter: AttachedAdapter, factors: dict[str, Tensor]) -> None:
    """Set every layer's shifts from `factor_tensors`; raises ValueError for a foreign set."""
    expected = factor_tensors(adapter).keys()
    if foreign := sorted(expected ^ factors.keys()):
        raise ValueError(f"factors of another adapter: {', '.join(foreign)} in only one of them")
    for name, layer in adapter.layers.items():
        layer.shift_A.copy_(factors[f"{name}.shift_A"])
        layer.shift_B.copy_(factors[f"{name}.shift_B"])


def _settings(config: AdapterConfig) -> dict[str, object]:
    return {"kind": config.kind, **asdict(config), "targets": list(config.targets)}


def _check_same(saved: dict[str, object], asked: dict[str, object], directory: Path) -> None:
    if different := sorted(k for k in saved | asked if saved.get(k) != asked.get(k)):
        changes = ", ".join(f"{k}: saved {saved.get(k)}, asked {asked.get(k)}" for k in different)
        raise ValueError(f"{directory} holds another adapter ({changes}); start a new run for it")
