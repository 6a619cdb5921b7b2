"""Objectives for RLVR, as pure functions of tensors: `OBJECTIVES[name](**options)`.

>>> objective = OBJECTIVES["grpo"](clip_high=0.28)  # doctest: +SKIP
>>> batch = objective.prepare(inputs)  # once per batch of rollouts, whole groups visible
>>> for micro in batch.split(8):  # gradients add up exactly to the batch's
...     objective(replace(micro, logp_BT=fresh)).loss.backward()

Pieces: advantages (`training/advantages.py`) and listwise projections (`listwise`, `divergences`),
policy losses (`policy_losses`, `trust_regions`), aggregations, token reweightings, KL estimators,
rollout correction; `presets` put them together as the papers do.
"""

from rlvr_decode.training.objectives.inputs import LossInputs, LossOutputs, Totals, merge_metrics
from rlvr_decode.training.objectives.objective import Objective
from rlvr_decode.training.objectives.options import Preset, preset
from rlvr_decode.training.objectives.presets import PRESETS
from rlvr_decode.training.objectives.shaping import informative, overlong_penalty

__all__ = [
    "OBJECTIVES",
    "LossInputs",
    "LossOutputs",
    "Objective",
    "Totals",
    "informative",
    "merge_metrics",
    "overlong_penalty",
]

OBJECTIVES: dict[str, Preset] = {build.__name__: preset(build) for build in PRESETS}
