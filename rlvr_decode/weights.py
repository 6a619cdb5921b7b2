"""A checkpoint's tensors in safetensors files, read and written one at a time.

A model of any size passes through: one tensor when read, one file's worth when written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The tensors of one directory, by name; nothing is read before it is asked for."""

    directory: Path
    files: Mapping[str, Path]

    @classmethod
    def open(cls, directory: str | Path) -> Self:
        """Raises ValueError for a directory without .safetensors files."""
        directory = Path(directory)
        files: dict[str, Path] = {}
        for path in sorted(directory.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                files.update(dict.fromkeys(file.keys(), path))
        if not files:
            raise ValueError(f"{directory}: holds no .safetensors weights")
        return cls(directory=directory, files=files)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.files))

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, without reading it."""
        with safe_open(self._file(name), framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """One tensor as it is stored; ValueError for a name that is not here."""
        with safe_open(self._file(name), framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def _file(self, name: str) -> Path:
        if name not in self.files:
            raise ValueError(f"{name}: not in {self.directory}")
        return self.files[name]


def write_weights(
    directory: Path, tensors: Iterable[tuple[str, Tensor]], *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors as the files that transformers and vLLM load: one, or several and an index.

    At most about `shard_bytes` are held at a time. Raises OSError where the disk is full.
    """
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        try:
            save_file(held, _part(directory, len(shards)), metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{directory}: {error}") from error
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        size = sum(map(_bytes, held.values()))
        if held and size + _bytes(tensor) > shard_bytes:
            flush()
        held[name] = tensor.contiguous()
        total += _bytes(tensor)
    flush()
    if len(shards) == 1:
        _part(directory, 0).rename(directory / "model.safetensors")
        return
    index: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        _part(directory, number).rename(directory / file)
        index |= dict.fromkeys(names, file)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    (directory / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


class Rounding:
    """How much of an update its storage loses: ‖stored − exact‖ / ‖update‖ over all tensors.

    A typical RLVR update is a thousandth of the weights, and bfloat16 resolves four.
    """

    def __init__(self) -> None:
        self._update = self._lost = self._lost_in_bfloat16 = 0.0

    def store(self, exact: Tensor, update: Tensor, dtype: torch.dtype) -> Tensor:
        """The exact float32 weight in `dtype`, its loss and that of bfloat16 remembered."""
        stored = exact.to(dtype)
        self._update += _square(update)
        self._lost += _square(stored.float() - exact)
        self._lost_in_bfloat16 += _square(exact.bfloat16().float() - exact)
        return stored

    @property
    def lost(self) -> float:
        """The share that the dtypes stored in take; 0 where there is no update."""
        return self._share(self._lost)

    @property
    def lost_in_bfloat16(self) -> float:
        """The share that storing everything in bfloat16 would take."""
        return self._share(self._lost_in_bfloat16)

    def _share(self, lost: float) -> float:
        return math.sqrt(lost / self._update) if self._update else 0.0


def _part(directory: Path, number: int) -> Path:
    return directory / f"shard-{number}.part"


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _square(tensor: Tensor) -> float:
    return tensor.double().square().sum().item()
