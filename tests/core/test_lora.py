"""Plain LoRA files: layers of several ranks through stock PEFT, vLLM's checks, and our reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlvr_decode.lora import lora_config, lora_scaling, write_lora
from rlvr_decode.matrices import matrix_pairs
from rlvr_decode.testing import make_checkpoints

RANKS = {"up_proj": 3, "down_proj": 3, "q_proj": 5}


def updates(model: torch.nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Random factors for the up, down and q projections, ranks by layer."""
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for name, module in model.named_modules():
        if rank := RANKS.get(name.rpartition(".")[2]):
            rows, columns = module.weight.shape
            left = 0.1 * torch.randn(rows, rank, generator=generator)
            factors[name] = left, torch.randn(rank, columns, generator=generator)
    return factors


def test_layers_of_several_ranks_mean_the_same_to_peft_and_to_us(tmp_path: Path) -> None:
    base, _ = make_checkpoints(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    factors = updates(model)
    adapter = write_lora(tmp_path / "lora", factors, scaling=1.5, dtype=torch.float32)
    expected = {
        f"{name}.weight": model.get_submodule(name).weight.detach() + 1.5 * left @ right
        for name, (left, right) in factors.items()
    }
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    ours = {pair.name: pair.rlvr_MN for pair in matrix_pairs(base, adapter)}
    for name, weight in expected.items():
        torch.testing.assert_close(merged[name], weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-5)


def test_config_of_one_rank_needs_no_patterns() -> None:
    config = lora_config({"a.q_proj": 32, "b.q_proj": 32, "b.up_proj": 32}, scaling=2.0)
    assert (config["r"], config["lora_alpha"]) == (32, 64)
    assert isinstance(config["lora_alpha"], int)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["target_modules"] == ["q_proj", "up_proj"]
    assert config["init_lora_weights"] is True


def test_config_of_several_ranks_is_legal_in_vllm() -> None:
    from vllm.config.lora import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper

    config = lora_config({"a.q_proj": 4, "b.q_proj": 4, "b.up_proj": 20}, scaling=0.5)
    helper = PEFTHelper.from_dict(json.loads(json.dumps(config)))
    helper.validate_legal(LoRAConfig(max_lora_rank=32))
    assert helper.get_rank_and_scaling("a.q_proj") == (4, 0.5)
    assert helper.get_rank_and_scaling("b.up_proj") == (20, 0.5)
    with pytest.raises(ValueError, match="20"):
        helper.validate_legal(LoRAConfig(max_lora_rank=16))


def test_scaling_follows_pefts_patterns() -> None:
    config = {"lora_alpha": 8, "alpha_pattern": {r"layers\.1\.mlp\.up_proj": 2, "k_proj": 16}}
    assert lora_scaling(config, "model.layers.0.mlp.up_proj", 4) == 2.0
    assert lora_scaling(config, "model.layers.1.mlp.up_proj", 4) == 0.5
    assert lora_scaling(config, "model.layers.11.mlp.up_proj", 4) == 2.0
    assert lora_scaling(config, "model.layers.0.self_attn.k_proj", 4) == 4.0


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no layers"):
        write_lora(tmp_path, {}, scaling=1.0)
    with pytest.raises(ValueError, match=r"dtype=torch\.float16"):
        factors = {"a.q_proj": (torch.ones(2, 1), torch.ones(1, 2))}
        write_lora(tmp_path, factors, scaling=1.0, dtype=torch.float16)
