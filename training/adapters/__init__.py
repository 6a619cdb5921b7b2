"""Adapters: low-rank updates of a frozen model that start from exactly that model.

`attach.attach(model, ADAPTERS[name](…), seed=…)` puts one on; `export.export` writes plain LoRA
for PEFT and vLLM; `state` carries training on; `merge.merge` folds one into full weights.
"""

from rlvr_decode.training.adapters.attach import AttachedAdapter
from rlvr_decode.training.adapters.config import AdapterConfig
from rlvr_decode.training.adapters.geora import GeoRAConfig
from rlvr_decode.training.adapters.lora import LoRAConfig
from rlvr_decode.training.adapters.singular import (
    MiLoRAConfig,
    PiSSAConfig,
    RLMOConfig,
    RLPOConfig,
)

__all__ = ["ADAPTERS", "AdapterConfig", "AttachedAdapter"]

ADAPTERS: dict[str, type[AdapterConfig]] = {
    "lora": LoRAConfig,
    "pissa": PiSSAConfig,
    "milora": MiLoRAConfig,
    "rlpo": RLPOConfig,
    "rlmo": RLMOConfig,
    "geora": GeoRAConfig,
}
