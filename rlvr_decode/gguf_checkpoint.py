"""From a GGUF file to a checkpoint of safetensors that vLLM, transformers and PEFT all open."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def convert(gguf: Path, directory: Path) -> None:
    """Write the model of a GGUF file, dequantised, and its tokenizer as `directory`, in bf16.

    The directory appears whole or not at all. Raises ValueError for a file transformers cannot
    read.
    """
    source: Any = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(trust_remote_code=False, **source)
    quantised = AutoModelForCausalLM.from_pretrained(
        trust_remote_code=False, dtype=torch.float32, **source
    )
    # transformers will not save a model that it read from GGUF, so its tensors move to a new one.
    config = AutoConfig.for_model(**_plain(quantised.config.to_dict()))
    from_config: Any = AutoModelForCausalLM.from_config
    model = from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    for special in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, special, getattr(config, special))
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as folder:
        unready = Path(folder) / directory.name
        model.to(torch.bfloat16).save_pretrained(unready)
        tokenizer.save_pretrained(unready)
        # Another process may have finished meanwhile: the files are the same.
        if not directory.exists():
            unready.rename(directory)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The config without what ties it to the GGUF file; eps as written, not as read in fp32."""
    kept = {
        key: value
        for key, value in config.items()
        if key not in ("quantization_config", "_name_or_path", "architectures", "dtype")
    }
    return {**kept, "rms_norm_eps": float(f"{config['rms_norm_eps']:.6g}")}
