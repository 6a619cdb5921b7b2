"""Prompts from a file, as the token ids that the server would make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlvr_decode.pair import Pair


def read_prompts(file: str | Path, pair: Pair, *, chat: bool = False) -> list[list[int]]:
    """The token ids of every prompt of a file.

    file  `.jsonl` with an object a line whose "prompt" is text or chat messages; of any other
          file each line that is not blank is a prompt.
    chat  put text through the chat template, as one message of the user.

    Raises ValueError that names the line which is neither, and for a file without prompts.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair.tokenizer_directory, trust_remote_code=False)
    file = Path(file)
    read = _from_json if file.suffix == ".jsonl" else _from_text
    prompts = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        prompt = read(line, f"{file}:{number}")
        if chat and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if isinstance(prompt, str):
            prompts.append(list(tokenizer(prompt).input_ids))
        else:
            ids = tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_dict=False
            )
            prompts.append(list(ids))
    if not prompts:
        raise ValueError(f"{file}: holds no prompts")
    return prompts


def _from_text(line: str, where: str) -> str:
    return line


def _from_json(line: str, where: str) -> Any:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{where}: must be an object with a "prompt": {error!r}') from error
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt):
        return prompt
    raise ValueError(f"{where}: prompt={prompt!r}: must be text or a list of chat messages")
