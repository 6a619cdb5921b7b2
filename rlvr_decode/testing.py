"""Test support: small random pairs that every architecture's code path can run on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Not a multiple of 64: vLLM pads the vocabulary, and the padding must never be sampled.
VOCAB = 509


def make_checkpoints(
    directory: Path,
    *,
    architecture: str = "qwen3",
    tied: bool = True,
    seed: int = 0,
    base_vocab: int = VOCAB,
    update: float = 0.02,
    **config: Any,
) -> tuple[Path, Path]:
    """A random base and an rlvr = base + update · noise, with tokenizers, as (base, rlvr) paths."""
    torch.manual_seed(seed)
    base = _random_model(architecture, tied=tied, vocab=base_vocab, **config)
    rlvr = _random_model(architecture, tied=tied, vocab=VOCAB, **config)
    weights = {
        name: weight[: rlvr.state_dict()[name].shape[0]]
        for name, weight in base.state_dict().items()
    }
    moved = {
        name: weight + update * torch.randn_like(weight) if weight.dim() == 2 else weight
        for name, weight in weights.items()
    }
    rlvr.load_state_dict(moved)
    if tied:
        rlvr.tie_weights()
    paths = directory / "base", directory / "rlvr"
    for model, path in zip((base, rlvr), paths, strict=True):
        model.save_pretrained(path)
        byte_tokenizer().save_pretrained(path)
    return paths


def make_adapter(
    directory: Path, base: Path, *, rank: int = 4, scale: float = 0.1, seed: int = 1
) -> tuple[Path, Path]:
    """A random LoRA of every linear layer and the checkpoint it makes of base, as two paths."""
    from transformers import AutoModelForCausalLM

    from rlvr_decode.lora import write_lora
    from rlvr_decode.matrices import LINEAR_LAYERS

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)
    factors = {}
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] in LINEAR_LAYERS:
            out, into = layer.weight.shape
            factors[name] = (scale * torch.randn(out, rank), scale * torch.randn(rank, into))
            with torch.no_grad():
                layer.weight += 2 * factors[name][0] @ factors[name][1]
    adapter = write_lora(directory / "adapter", factors, scaling=2.0, dtype=torch.float32)
    model.save_pretrained(directory / "merged")
    byte_tokenizer().save_pretrained(directory / "merged")
    return adapter, directory / "merged"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: `<pad> <bos> <eos>`, the 256 bytes, then words.

    Text never becomes words, but the ids that a random model samples have a text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<bos>", "<eos>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # A few ids stay free: some architectures' tokenizer classes add a special token of their own.
    words = [f"w{i}" for i in range(len(specials + alphabet), VOCAB - 4)]
    vocab = {token: i for i, token in enumerate(specials + alphabet + words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return fast


def _random_model(architecture: str, *, tied: bool, vocab: int, **config: Any) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if architecture == "qwen2":
        shape["num_attention_heads"] = 2  # its heads always divide the hidden size
        del shape["head_dim"]
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        AutoConfig.for_model(architecture, **(shape | config)), dtype=torch.float32
    )
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.25 if name.startswith("lm_head") else 0.08)
    return model
