"""Models on disk and in memory: made new, opened, written as a directory others can open."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlvr_decode.fetched import CHECKPOINTS, fetch
from rlvr_decode.pair import Pair
from rlvr_decode.pair_check import code_brought
from rlvr_decode.training.config import Architecture
from rlvr_decode.training.policy.tokenizer import byte_pair_tokenizer, character_tokenizer


def new_model(
    architecture: Architecture, seed: int, texts: Iterable[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Qwen3 with random fp32 weights; byte pairs, if it has such a tokenizer, are of `texts`."""
    tokenizer = new_tokenizer(architecture, texts)
    config = Qwen3Config(
        vocab_size=architecture.vocabulary,
        hidden_size=architecture.hidden,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        head_dim=architecture.head,
        intermediate_size=architecture.intermediate,
        max_position_embeddings=architecture.positions,
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)  # type: ignore[no-untyped-call]
    _initialise(model, torch.Generator().manual_seed(seed))
    return model, tokenizer


def new_tokenizer(architecture: Architecture, texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """The tokenizer an architecture names, within its vocabulary."""
    kind, vocabulary = architecture.tokenizer, architecture.vocabulary
    if kind == "byte_pairs":
        tokenizer = byte_pair_tokenizer(texts, vocabulary, architecture.positions)
    elif kind == "characters":
        tokenizer = character_tokenizer(architecture.positions)
    else:
        raise ValueError(
            f"pretrain.architecture.tokenizer={kind!r}: must be characters or byte_pairs"
        )
    if vocabulary < len(tokenizer):
        raise ValueError(
            f"pretrain.architecture.vocabulary={vocabulary}: "
            f"the tokenizer of {kind} has {len(tokenizer)} tokens"
        )
    return tokenizer


@torch.no_grad()
def _initialise(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Normal weights of variance 1/fan-in; what writes to the residual stream starts at half."""
    for name, weight in model.named_parameters():
        if weight.ndim != 2:
            continue
        std = 0.02 if "embed" in name else 1 / math.sqrt(weight.shape[1])
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= 2
        weight.normal_(0.0, std, generator=generator)


def located(source: str | Path) -> str | Path:
    """A checkpoint's directory or hub id.

    `pair:NAME` is the base of that pair; a key of `fetched.CHECKPOINTS` is downloaded first.
    """
    if source in CHECKPOINTS:
        return fetch(str(source))
    kind, _, name = str(source).partition(":")
    return Pair.open(name).base.fetch() if kind == "pair" else source


def named(source: str | Path) -> str | Path:
    """A checkpoint as what is written may name it: one out of a package by its name, to travel."""
    return source if source in CHECKPOINTS else located(source)


def open_model(source: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The fp32 model and the tokenizer of a directory, hub id or pair; safetensors only.

    Raises ValueError for a directory whose config would run code of its own.
    """
    source = located(source)
    if Path(source).is_dir() and (found := code_brought(Path(source))):
        raise ValueError(f"{source}: {'; '.join(found)}")
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.pad_token is None:
        # Padding is always masked out, so any token serves.
        tokenizer.pad_token = tokenizer.eos_token
    # How it was opened is no property of a tokenizer, but would be saved as one.
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    return model, tokenizer


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write a directory that transformers and vLLM open: config, weights, tokenizer.

    state  the weights, where the model does not have them whole.
    """
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(directory, state_dict=state)
    tokenizer.save_pretrained(directory)
    for file in directory.iterdir():
        # The weights come out readable by their owner alone, which no package can ship.
        os.chmod(file, 0o644)
