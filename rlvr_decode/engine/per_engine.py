"""One value for each engine of a process, found by parts of it that share only its config."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from vllm.config import VllmConfig

Value = TypeVar("Value")


class PerEngine(Generic[Value]):
    """Called with an engine's config it gives the engine's value, made when first asked for.

    vLLM builds a model, its worker and its processors apart from each other, and hands each the
    config object. Configs have no hash, so the value is kept by identity until the config is gone.
    """

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._values: dict[int, Value] = {}

    def __call__(self, vllm_config: VllmConfig) -> Value:
        key = id(vllm_config)
        if key not in self._values:
            self._values[key] = self._make()
            weakref.finalize(vllm_config, self._values.pop, key, None)
        return self._values[key]
