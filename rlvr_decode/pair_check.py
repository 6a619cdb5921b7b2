"""What two checkpoints must share to be a pair, compared before any weight is read.

The engine builds both models from rlvr's config and asks both about the same token ids, so a
difference here would not fail: it would answer wrongly. Every config key is compared except
those that cannot change a model's output.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Bookkeeping, training-time or storage settings. Token ids and the vocabulary's size have checks
# of their own; everything else that a config says shapes the model.
NEUTRAL_KEYS = frozenset(
    {
        "_name_or_path",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "vocab_size",
    }
)

# Cut the same way by both tokenizers: spaces, digits, case, accents, other scripts, code.
PROBE = (
    "Ünïcode  and\ttabs\n\n12345+678.9=\u00a0?? don't  DON'T 日本語 العربية 🙂 x_1 = {'a': [0]}\r\n"
)


def disagreements(base: Path, rlvr: Path, *, kind: str) -> list[str]:
    """Every way in which the two directories cannot be a pair; empty when they can.

    kind  of rlvr: a "full" checkpoint, or an "adapter" whose config is the base's.
    """
    found = _unusable("base", base, "*.safetensors")
    if kind == "adapter":
        found += _unusable("rlvr", rlvr, "adapter_model*.safetensors")
        return found or _vocabulary_disagreements(base, base)
    found += _unusable("rlvr", rlvr, "*.safetensors")
    # What is unusable is not opened any further.
    return found or _config_disagreements(base, rlvr) + _vocabulary_disagreements(base, rlvr)


def stop_token_ids(*directories: Path) -> tuple[int, ...]:
    """The union of the end-of-sequence ids that the checkpoints declare, ascending."""
    files = [
        directory / name
        for directory in directories
        for name in ("config.json", "generation_config.json")
    ]
    return tuple(sorted({id_ for file in files for id_ in _declared_stops(file)}))


def engine_stops(directory: Path) -> list[int]:
    """The ids at which vLLM stops when it reads this directory's generation config.

    Like transformers, it takes those of `config.json` only where there is no generation config.
    """
    generation = directory / "generation_config.json"
    return _declared_stops(generation if generation.is_file() else directory / "config.json")


def _declared_stops(file: Path) -> list[int]:
    declared = _json(file).get("eos_token_id")
    if declared is None:
        return []
    stops = declared if isinstance(declared, list) else [declared]
    if not all(type(stop) is int for stop in stops):
        raise ValueError(f"{file}: eos_token_id={_short(declared)}: must be a token id, or several")
    return stops


def _model_config(directory: Path) -> dict[str, Any]:
    """The config with its class's defaults filled in, so that older spellings compare equal."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    values: dict[str, Any] = config.to_dict()
    return values


def _unusable(role: str, directory: Path, weights: str) -> list[str]:
    """What would run code or be unpickled, and what is not there at all."""
    config = "adapter_config.json" if weights.startswith("adapter") else "config.json"
    found = [] if (directory / config).is_file() else [f"{role}: no {config} in {directory}"]
    found += [f"{role}/{line}" for line in code_brought(directory)]
    if not any(directory.glob(weights)):
        others = sorted(file.name for file in directory.iterdir()) if directory.is_dir() else []
        found.append(
            f"{role}: no {weights} in {directory} (there: {', '.join(others) or 'nothing'}); "
            "only safetensors are read, `save_pretrained` writes them"
        )
    return found


def code_brought(directory: Path) -> list[str]:
    """What in a checkpoint would run code of its own; each line begins with the file's name."""
    reason = "would run the checkpoint's own code, which is refused"
    return [
        f"{file.name}: auto_map={auto_map!r} {reason}"
        for file in sorted(directory.glob("*config.json"))
        if (auto_map := _json(file).get("auto_map"))
    ]


def _config_disagreements(base: Path, rlvr: Path) -> list[str]:
    base_config, rlvr_config = _model_config(base), _model_config(rlvr)
    found = []
    for key in sorted((base_config.keys() | rlvr_config.keys()) - NEUTRAL_KEYS):
        ours, theirs = base_config.get(key), rlvr_config.get(key)
        if ours != theirs:
            found.append(f"config {key}: base has {_short(ours)}, rlvr has {_short(theirs)}")
    return found


def _vocabulary_disagreements(base: Path, rlvr: Path) -> list[str]:
    ours, theirs = _tokenizer(base), _tokenizer(rlvr)
    base_vocab, rlvr_vocab = ours.get_vocab(), theirs.get_vocab()
    found = []
    if base_vocab != rlvr_vocab:
        found.append("tokenizer: " + _vocab_difference(base_vocab, rlvr_vocab))
    elif (base_ids := ours.encode(PROBE)) != (rlvr_ids := theirs.encode(PROBE)):
        cut = f"base gives {_short(base_ids)}, rlvr gives {_short(rlvr_ids)}"
        found.append(f"tokenizer: the same text becomes other tokens: {cut}")
    for name in ("bos_token_id", "unk_token_id"):
        pair = getattr(ours, name), getattr(theirs, name)
        if pair[0] != pair[1]:
            found.append(f"tokenizer {name}: base has {pair[0]}, rlvr has {pair[1]}")
    # Rows beyond the tokenizer's ids are padding and may differ; no id may be without a row.
    for role, directory, vocab in (("base", base, base_vocab), ("rlvr", rlvr, rlvr_vocab)):
        size, largest = _model_config(directory).get("vocab_size"), max(vocab.values())
        if not isinstance(size, int) or size <= largest:
            found.append(f"{role}: vocab_size={size!r}, but its tokenizer has id {largest}")
    return found


def _tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        directory, trust_remote_code=False, use_fast=True
    )
    return tokenizer


def _vocab_difference(base: Mapping[str, int], rlvr: Mapping[str, int]) -> str:
    differing = [token for token in base.keys() | rlvr.keys() if base.get(token) != rlvr.get(token)]
    # The lowest id shows where the two part.
    token = min(differing, key=lambda each: (base.get(each, rlvr.get(each, 0)), each))
    ids = f"{token!r} is {base.get(token)} in base and {rlvr.get(token)} in rlvr"
    return f"{len(differing)} tokens have other ids, first {ids}"


def _json(file: Path) -> dict[str, Any]:
    """A config file's object; {} where there is no such file."""
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: must hold a JSON object, holds {type(values).__name__}")
    return values


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "…"
