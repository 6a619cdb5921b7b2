"""A KV cache for sampling that writes new tokens in place.

transformers' own copies every key and value of every layer at each token; for a batch of short
steps that is a quarter of a sampler's time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

LEAST_ROOM = 32  # tokens


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, of shape [batch, heads, tokens, width], with room behind them.

    When the room is used up all move to a place with room for a quarter more: seldom enough to cost
    nothing, and no more memory than that is taken for tokens that may never come.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # What `keys` and `values` are the beginning of; none while they lie alone.
        self._stores: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take in new tokens; returns all keys and all values, as views."""
        if not self.get_seq_length():
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        assert self.keys is not None and self.values is not None
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if self._stores is None or self._stores[0].shape[-2] < end:
            size = end + max(LEAST_ROOM, end // 4)
            self._stores = _with_room(self.keys, size), _with_room(self.values, size)
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[..., start:end, :] = states
        self.keys, self.values = (store[..., :end, :] for store in self._stores)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        super().batch_repeat_interleave(repeats)
        self._stores = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the sequences."""
        super().batch_select_indices(indices)
        self._stores = None


def roomy_cache(config: PreTrainedConfig) -> DynamicCache:
    """A cache for inference.

    Layers that see a window or hold a state are transformers' own.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def _with_room(states: Tensor, size: int) -> Tensor:
    """The states at the beginning of a store for `size` tokens."""
    *outer, tokens, width = states.shape
    store = torch.empty(*outer, size, width, dtype=states.dtype, device=states.device)
    store[..., :tokens, :] = states
    return store
