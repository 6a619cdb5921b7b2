"""Small random models and the few training steps that move an adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlvr_decode.testing import make_checkpoints
from rlvr_decode.training.adapters.attach import AttachedAdapter, attach
from rlvr_decode.training.adapters.geora import GeoRAConfig

VOCAB = 61

MakeModel = Callable[..., PreTrainedModel]
Train = Callable[..., None]


@pytest.fixture
def make_model() -> MakeModel:
    """A random two-layer model of an architecture; the same arguments give the same weights."""

    def make(architecture: str = "qwen3", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            architecture,
            vocab_size=VOCAB,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            tie_word_embeddings=True,
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for weight in model.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.15)
        return model.to(dtype).eval()

    return make


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(VOCAB, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def train(tokens: Tensor) -> Train:
    """Steps of AdamW on next-token cross entropy over `tokens`."""

    def run(
        model: nn.Module,
        parameters: list[nn.Parameter],
        *,
        steps: int = 3,
        learning_rate: float = 1e-2,
        weight_decay: float = 0.0,
    ) -> None:
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        for _ in range(steps):
            optimizer.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()

    return run


@pytest.fixture
def logits(tokens: Tensor) -> Callable[[nn.Module], Tensor]:
    @torch.no_grad()
    def of(model: nn.Module) -> Tensor:
        result: Tensor = model(input_ids=tokens).logits
        return result

    return of


@pytest.fixture
def train_on_disk(train: Train) -> Callable[[Path], tuple[Path, AttachedAdapter]]:
    """A base checkpoint in a directory, and a GeoRA adapter moved a few steps on it."""

    def run(directory: Path) -> tuple[Path, AttachedAdapter]:
        base, _ = make_checkpoints(directory)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapter = attach(model, GeoRAConfig(), seed=0)
        train(model, adapter.trainable_parameters(), steps=4, learning_rate=2e-3)
        return base, adapter

    return run
