"""LoRA (arXiv 2106.09685): a random A, and B from zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlvr_decode.training.adapters.config import AdapterConfig, Anchors


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRAConfig(AdapterConfig):
    """Plain LoRA as PEFT starts it: A uniform in ±1/√in (Kaiming with a = √5), B = 0.

    The learning rate is the one LoRA is usually run at in RLVR. arXiv 2601.09361 compares all its
    methods at GeoRA's 1e-6, where a start from B = 0, which moves only one factor, is slow.
    """

    kind: ClassVar[str] = "lora"
    learning_rate: ClassVar[float] = 1e-5

    def anchors(self, weight_MN: Tensor, *, generator: torch.Generator) -> Anchors:
        columns = weight_MN.shape[1]
        uniform_RN = torch.rand((self.rank, columns), generator=generator, dtype=weight_MN.dtype)
        return Anchors(((2 * uniform_RN - 1) / math.sqrt(columns)).to(weight_MN.device), None)
