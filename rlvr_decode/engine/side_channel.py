"""Values that vLLM's answers cannot carry, from the model in a worker to the front end.

The front end opens a channel under a key of its choice and sends the key along with a request.
The model puts tensors under the key, step after step, without waiting for the device; when the
request has ended, the front end takes them. Nobody listens under a key that was not opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlvr_decode.engine.per_engine import PerEngine

if TYPE_CHECKING:
    from vllm.config import VllmConfig

EXTENSION = "rlvr_decode.engine.side_channel.SideChannelExtension"


class SideChannel:
    """What the requests of one engine have been given, by key.

    `runner` is the worker's model runner, once a channel was opened.
    """

    def __init__(self) -> None:
        self._chunks: dict[str, list[Mapping[str, Tensor]]] = {}
        self.runner: Any = None

    def open(self, key: str) -> None:
        self._chunks[key] = []

    def is_open(self, key: str) -> bool:
        return key in self._chunks

    def put(self, key: str, values: Mapping[str, Tensor]) -> None:
        """Append named rows of values; every chunk of a key has the same names."""
        if key in self._chunks:
            self._chunks[key].append(values)

    def take(self, key: str) -> dict[str, list[Any]]:
        """All rows put under a key, in order, by name; the key is closed."""
        chunks = self._chunks.pop(key, [])
        names = chunks[0] if chunks else ()
        return {name: torch.cat([chunk[name] for chunk in chunks]).tolist() for name in names}


# The worker and the model share only the config object.
channel_of = PerEngine(SideChannel)


class SideChannelExtension:
    """The front end's way in: vLLM mixes these methods into its worker (`collective_rpc`)."""

    vllm_config: VllmConfig
    model_runner: Any

    def open_side_channel(self, key: str) -> None:
        channel = channel_of(self.vllm_config)
        channel.runner = self.model_runner
        channel.open(key)

    def take_side_channel(self, key: str) -> dict[str, list[Any]]:
        return channel_of(self.vllm_config).take(key)
