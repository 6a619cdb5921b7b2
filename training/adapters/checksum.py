"""Checksums of a model's tensors: proof that training left the base model alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from rlvr_decode.training.processes.sharding import full


def tensor_checksums(state: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of each tensor's shape, dtype and bytes, by name."""
    return {name: _checksum(tensor) for name, tensor in state.items()}


def combined_checksum(checksums: Mapping[str, str]) -> str:
    """One SHA-256 for a whole model, independent of the order of its tensors."""
    lines = "".join(f"{name} {checksums[name]}\n" for name in sorted(checksums))
    return hashlib.sha256(lines.encode()).hexdigest()


def _checksum(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}\n".encode())
    flat = full(tensor.detach()).cpu().contiguous().flatten()
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
