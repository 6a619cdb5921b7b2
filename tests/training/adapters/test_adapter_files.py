"""An adapter's way out: plain LoRA for PEFT, state to resume from, merged weights."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlvr_decode.lora import lora_tensors
from rlvr_decode.lowrank import compact
from rlvr_decode.matrices import matrix_pairs
from rlvr_decode.pair import write_pair
from rlvr_decode.training.adapters import ADAPTERS
from rlvr_decode.training.adapters.attach import attach
from rlvr_decode.training.adapters.export import export, update_factors
from rlvr_decode.training.adapters.geora import GeoRAConfig
from rlvr_decode.training.adapters.layer import AnchoredLinear
from rlvr_decode.training.adapters.merge import merge, merged_update
from rlvr_decode.training.adapters.state import resume, save_state

KINDS = sorted(ADAPTERS)
TWICE_THE_RANK = {"geora", "pissa", "milora"}


def relative_error(approximate: Tensor, exact: Tensor) -> float:
    return ((approximate.double() - exact.double()).norm() / exact.double().norm()).item()


@torch.no_grad()
def moved_by(layer: AnchoredLinear, relative: float) -> Tensor:
    """Shift a layer's factors so that ‖ΔW‖ = relative · ‖W‖; returns ΔW in float64."""
    generator = torch.Generator().manual_seed(0)
    weight = layer.base.weight.double()
    layer.shift_A.normal_(generator=generator)
    layer.shift_B.normal_(generator=generator)
    for _ in range(8):  # ΔW is nearly linear in small shifts
        scale = relative * weight.norm() / merged_update(layer).double().norm()
        layer.shift_A.mul_(scale)
        layer.shift_B.mul_(scale)
    A0, B0 = layer.anchor_A.double(), layer.anchor_B
    assert B0 is not None
    A, B = A0 + layer.shift_A, B0.double() + layer.shift_B
    return layer.scaling * (B @ A - B0.double() @ A0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_stock_peft_gives_the_trained_logits(
    make_model, logits, train, tmp_path, kind: str, architecture: str
) -> None:
    model = make_model(architecture)
    adapter = attach(model, ADAPTERS[kind](rank=4, alpha=6.0), seed=0)
    train(model, adapter.trainable_parameters())
    trained = logits(model)
    directory = export(adapter, tmp_path / "adapter", dtype=torch.float32, base="some/base")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        peft_model = PeftModel.from_pretrained(make_model(architecture), directory)
    assert (trained - logits(make_model(architecture))).abs().max() > 0.05
    torch.testing.assert_close(logits(peft_model), trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_export_says_what_every_loader_accepts(make_model, tmp_path, kind: str) -> None:
    adapter = attach(make_model(), ADAPTERS[kind](rank=4, alpha=6.0), seed=0)
    directory = export(adapter, tmp_path, base="some/base")
    config = json.loads((directory / "adapter_config.json").read_text())
    rank = 8 if kind in TWICE_THE_RANK else 4
    assert config["r"] == rank
    assert config["lora_alpha"] == 1.5 * rank
    assert config["init_lora_weights"] is True
    assert config["modules_to_save"] is None
    assert config["base_model_name_or_path"] == "some/base"
    tensors = load_file(directory / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(adapter.layers)
    A = tensors["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"]
    B = tensors["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"]
    assert (A.shape, B.shape) == ((rank, 96), (48, rank))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata()["base_checksum"] == adapter.base_checksum


def test_the_same_adapter_is_the_same_file(make_model, tmp_path) -> None:
    """Its digest is in pair.json; six writes agree by chance once in 32."""
    adapter = attach(make_model(), GeoRAConfig(rank=4), seed=0)
    files = [export(adapter, tmp_path / f"{i}") / "adapter_model.safetensors" for i in range(6)]
    assert len({file.read_bytes() for file in files}) == 1


def test_export_refuses_other_dtypes(make_model, tmp_path) -> None:
    adapter = attach(make_model(), GeoRAConfig(rank=4), seed=0)
    with pytest.raises(ValueError, match=r"dtype=torch\.float16"):
        export(adapter, tmp_path, dtype=torch.float16)


def test_exported_tensors_are_copies(make_model, train) -> None:
    model = make_model()
    adapter = attach(model, ADAPTERS["lora"](rank=4), seed=0)
    before = lora_tensors(update_factors(adapter), dtype=torch.float32)
    train(model, adapter.trainable_parameters(), steps=1)
    assert all(not tensor.any() for name, tensor in before.items() if "lora_B" in name)


@pytest.mark.parametrize("relative", [1.2e-3, 1.2e-4])
def test_difference_form_survives_bfloat16_and_concatenation_does_not(
    make_model, relative: float
) -> None:
    adapter = attach(make_model(), GeoRAConfig(rank=4, alpha=8.0), seed=0)
    name, layer = "model.layers.0.mlp.up_proj", adapter.layers["model.layers.0.mlp.up_proj"]
    update = moved_by(layer, relative)
    assert update.norm() / layer.base.weight.norm() == pytest.approx(relative, rel=1e-3)
    tensors = lora_tensors(update_factors(adapter), dtype=torch.bfloat16)
    A, B = (tensors[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
    assert relative_error(layer.scaling * B @ A, update) < 4e-3
    assert layer.anchor_B is not None
    left = torch.cat([layer.anchor_B + layer.shift_B, -layer.anchor_B], dim=1).bfloat16()
    right = torch.cat([layer.anchor_A + layer.shift_A, layer.anchor_A]).bfloat16()
    assert relative_error(layer.scaling * left.double() @ right.double(), update) > 0.2


def test_exported_update_compacts_to_twice_the_rank(make_model) -> None:
    adapter = attach(make_model(), GeoRAConfig(rank=4, alpha=8.0), seed=0)
    layer = next(iter(adapter.layers.values()))
    update = moved_by(layer, 1e-2)
    left, right = (factor.double() for factor in layer.update_factors())
    low_rank = compact(layer.scaling * left, right)
    assert low_rank.rank == 8
    assert relative_error(low_rank.left_MR @ low_rank.right_RN, update) < 1e-6
    dense = torch.linalg.svdvals(update)[:8]
    torch.testing.assert_close(low_rank.singular_values_R, dense, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_merge_in_float32_is_the_trained_model(make_model, logits, train, kind: str) -> None:
    model = make_model()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapter = attach(model, ADAPTERS[kind](rank=4, alpha=6.0), seed=0)
    train(model, adapter.trainable_parameters())
    merged = merge(adapter)
    assert merged.lost < 1e-4
    plain = make_model()
    plain.load_state_dict(base | merged.weights)
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=2e-5)
    adapter.check_base()


def test_merge_reports_what_bfloat16_loses(make_model) -> None:
    model = make_model(dtype=torch.bfloat16)
    adapter = attach(model, GeoRAConfig(rank=4, alpha=8.0), seed=0)
    lost = []
    for layer in adapter.layers.values():
        update = moved_by(layer, 1.2e-3)
        seen = (layer.base.weight.double() + update).bfloat16().double() - layer.base.weight
        lost.append(((seen - update).square().sum(), update.square().sum()))
    expected = (sum(a for a, _ in lost) / sum(b for _, b in lost)) ** 0.5
    assert expected > 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        in_float32 = merge(adapter)
    assert in_float32.lost < 1e-3
    assert in_float32.lost_in_bfloat16 == pytest.approx(float(expected), rel=1e-3)
    with pytest.warns(UserWarning, match=f"loses {float(expected):.0%} of the update"):
        in_bfloat16 = merge(adapter, dtype=torch.bfloat16)
    assert in_bfloat16.lost == in_float32.lost_in_bfloat16
    assert all(weight.dtype == torch.bfloat16 for weight in in_bfloat16.weights.values())


def test_merge_of_an_untrained_adapter_is_the_base(make_model) -> None:
    model = make_model()
    merged = merge(attach(model, GeoRAConfig(rank=4), seed=0), dtype=torch.bfloat16)
    assert (merged.lost, merged.lost_in_bfloat16) == (0.0, 0.0)
    name = "model.layers.0.mlp.up_proj"
    assert torch.equal(
        merged.weights[f"{name}.weight"], make_model().get_submodule(name).weight.bfloat16()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_resume_goes_on_to_the_same_bits(make_model, logits, train, tmp_path, kind: str) -> None:
    config = ADAPTERS[kind](rank=4)
    model = make_model()
    adapter = attach(model, config, seed=3)
    train(model, adapter.trainable_parameters(), steps=2)
    save_state(adapter, tmp_path)
    resumed_model = make_model()
    resumed = resume(resumed_model, config, tmp_path)
    assert resumed.seed == 3
    assert torch.equal(logits(resumed_model), logits(model))
    train(model, adapter.trainable_parameters(), steps=2)
    train(resumed_model, resumed.trainable_parameters(), steps=2)
    for ours, theirs in zip(
        adapter.trainable_parameters(), resumed.trainable_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trainer_can_checkpoint_the_parameters_as_they_are(make_model, tmp_path, kind) -> None:
    model = make_model()
    attach(model, ADAPTERS[kind](rank=4), seed=0)
    state = {name: tensor for name, tensor in model.state_dict().items() if "lm_head" not in name}
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_resume_refuses_another_adapter(make_model, tmp_path) -> None:
    save_state(attach(make_model(), GeoRAConfig(rank=4), seed=0), tmp_path)
    with pytest.raises(ValueError, match=r"rank: saved 4, asked 8"):
        resume(make_model(), GeoRAConfig(rank=8), tmp_path)
    with pytest.raises(ValueError, match=r"kind: saved geora, asked lora"):
        resume(make_model(), ADAPTERS["lora"](rank=4), tmp_path)


def test_resume_refuses_another_base(make_model, tmp_path) -> None:
    save_state(attach(make_model(), GeoRAConfig(rank=4), seed=0), tmp_path)
    other = make_model()
    with torch.no_grad():
        other.model.norm.weight[0] += 1e-6
    with pytest.raises(ValueError, match="trained on another base model"):
        resume(other, GeoRAConfig(rank=4), tmp_path)
    assert not any(isinstance(module, AnchoredLinear) for module in other.modules())


def test_an_export_is_the_rlvr_of_a_pair(train_on_disk, tmp_path) -> None:
    """The serving side opens it, and reads the trainer's own merged weights off it."""
    base, adapter = train_on_disk(tmp_path)
    export(adapter, tmp_path / "rlvr", dtype=torch.float32)
    pair = write_pair(tmp_path, name="trained", base=base, rlvr=tmp_path / "rlvr")
    assert pair.rlvr.kind == "adapter"
    merged = merge(adapter).weights
    read = {pair.name: pair.rlvr_MN for pair in matrix_pairs(base, tmp_path / "rlvr")}
    assert read.keys() == merged.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(read[name], weight, rtol=0, atol=1e-6)
