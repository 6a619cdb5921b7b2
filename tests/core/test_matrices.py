"""Reading a pair's matrices from full weights and from plain LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rlvr_decode.matrices import matrix_pairs, weight_pairs

UP = "model.layers.0.mlp.up_proj"
DOWN = "model.layers.0.mlp.down_proj"


def write(directory: Path, *shards: dict[str, Tensor]) -> Path:
    directory.mkdir()
    for number, tensors in enumerate(shards):
        save_file(tensors, directory / f"model-{number}.safetensors")
    return directory


@pytest.fixture
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{UP}.weight": torch.randn(6, 4, generator=generator),
        f"{DOWN}.weight": torch.randn(4, 6, generator=generator).bfloat16(),
        f"{UP}.bias": torch.zeros(6),
        "model.norm.weight": torch.ones(4),
        "model.embed_tokens.weight": torch.ones(9, 4),
    }


def test_full_weights_are_paired_across_shards(weights: dict[str, Tensor], tmp_path: Path) -> None:
    base = write(tmp_path / "base", {k: v for k, v in weights.items() if "down" in k},
                 {k: v for k, v in weights.items() if "down" not in k})  # fmt: skip
    rlvr = write(tmp_path / "rlvr", {name: 2 * tensor for name, tensor in weights.items()})
    [down, up] = matrix_pairs(base, rlvr)
    assert (down.name, up.name) == (f"{DOWN}.weight", f"{UP}.weight")
    assert torch.equal(up.base_MN, weights[up.name])
    assert torch.equal(down.rlvr_MN, 2 * weights[down.name])
    assert down.rlvr_MN.dtype == torch.bfloat16
    assert [pair.name for pair in matrix_pairs(base, rlvr, layers=("up_proj",))] == [up.name]


def test_lora_is_added_in_float32(weights: dict[str, Tensor], tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights)
    A, B = torch.full((2, 4), 0.5), torch.full((6, 2), 1e-4)
    prefix = f"base_model.model.{UP}"
    adapter = write(
        tmp_path / "adapter", {f"{prefix}.lora_A.weight": A, f"{prefix}.lora_B.weight": B}
    )
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6}))
    [down, up] = matrix_pairs(base, adapter)
    torch.testing.assert_close(up.rlvr_MN - up.base_MN, torch.full((6, 4), 3e-4), rtol=1e-3, atol=0)
    assert torch.equal(down.rlvr_MN, down.base_MN.float())


def test_what_does_not_fit_is_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights)
    partial = write(tmp_path / "partial", {f"{DOWN}.weight": weights[f"{DOWN}.weight"]})
    with pytest.raises(ValueError, match=f"{UP}.weight: in base, but not in .*partial"):
        list(matrix_pairs(base, partial))
    wide = write(tmp_path / "wide", weights | {f"{UP}.weight": torch.zeros(6, 5)})
    with pytest.raises(ValueError, match=r"\(6, 4\) in base, \(6, 5\) in rlvr"):
        list(matrix_pairs(base, wide))
    with pytest.raises(ValueError, match="no weights of w1"):
        list(matrix_pairs(base, base, layers=("w1",)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: holds no \.safetensors"):
        list(matrix_pairs(base, tmp_path / "empty"))


@pytest.mark.parametrize("key", ["use_rslora", "use_dora", "modules_to_save"])
def test_only_plain_lora_is_read(weights: dict[str, Tensor], tmp_path: Path, key: str) -> None:
    base = write(tmp_path / "base", weights)
    adapter = write(tmp_path / "adapter", {"x": torch.zeros(1)})
    config = {"r": 2, "lora_alpha": 6, key: True}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{key}: only plain LoRA"):
        list(matrix_pairs(base, adapter))


def test_an_adapter_of_another_model_is_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights)
    keys = [f"base_model.model.model.layers.9.mlp.up_proj.lora_{side}.weight" for side in "AB"]
    adapter = write(tmp_path / "adapter", {key: torch.ones(1, 1) for key in keys})
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 1, "lora_alpha": 1}))
    with pytest.raises(ValueError, match=r"layers\.9\.mlp.*base has no such layer"):
        list(weight_pairs(base, adapter))


def test_quantised_weights_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights)
    coded = weights | {f"{UP}.weight": torch.ones(6, 4, dtype=torch.float8_e4m3fn)}
    rlvr = write(tmp_path / "rlvr", coded)
    with pytest.raises(ValueError, match=f"{UP}.weight: torch.float8_e4m3fn; quantised"):
        list(weight_pairs(base, rlvr))


@pytest.mark.parametrize("stored_by", ["base", "rlvr"])
def test_a_tied_head_that_one_side_stores_is_left_out(
    weights: dict[str, Tensor], tmp_path: Path, stored_by: str
) -> None:
    head = {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    base, rlvr = (
        write(tmp_path / role, weights | (head if role == stored_by else {}))
        for role in ("base", "rlvr")
    )
    assert [pair.name for pair in weight_pairs(base, rlvr)] == sorted(weights)
