"""Objectives for RLVR, as pure functions of tensors: `OBJECTIVES[name](**options)`.

>>> objective = OBJECTIVES["grpo"](clip_high=0.28)
>>> batch = objective.prepare(inputs)                        # once per rollout batch
>>> for micro in batch.split(8):                             # gradients add up to the batch's
...     objective(replace(micro, logp_BT=fresh)).loss.backward()
"""

from rlvr_decode.training.objectives.inputs import LossInputs, LossOutputs, Totals, merge_metrics
from rlvr_decode.training.objectives.objective import Objective
from rlvr_decode.training.objectives.options import Preset, preset
from rlvr_decode.training.objectives.presets import grpo

__all__ = ["OBJECTIVES", "LossInputs", "LossOutputs", "Objective", "Totals", "merge_metrics"]

OBJECTIVES: dict[str, Preset] = {build.__name__: preset(build) for build in (grpo,)}
