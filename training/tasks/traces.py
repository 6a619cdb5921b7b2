"""Worked responses to prompts, as supervised training reads them.

B traces, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

_IGNORED = -100


class Trace(NamedTuple):
    """What to learn: a response to a prompt."""

    prompt: str
    response: str


def read_traces(path: Path) -> list[Trace]:
    """The prompts and responses of a JSONL file."""
    traces = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        if not isinstance(row, dict) or not all(
            isinstance(row.get(key), str) for key in Trace._fields
        ):
            raise ValueError(
                f'{path}:{number}: needs strings "prompt" and "response", got {line[:80]!r}'
            )
        traces.append(Trace(row["prompt"], row["response"]))
    if not traces:
        raise ValueError(f"{path}: has no traces; nothing was found that verifies")
    return traces


def encode(batch: Sequence[Trace], tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Token ids and labels, [B, T], right-padded; labels are responses and their end alone."""
    inputs, labels = [], []
    for trace in batch:
        question = tokenizer.encode(trace.prompt)
        answer = tokenizer.encode(trace.response, add_special_tokens=False)
        answer.append(tokenizer.eos_token_id)
        inputs.append(torch.tensor(question + answer))
        labels.append(torch.tensor([_IGNORED] * len(question) + answer))
    pad = nn.utils.rnn.pad_sequence
    return (
        pad(inputs, batch_first=True, padding_value=tokenizer.pad_token_id),
        pad(labels, batch_first=True, padding_value=_IGNORED),
    )
