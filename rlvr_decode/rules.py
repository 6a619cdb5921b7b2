"""From a request's settings to the numbers that the gated rule's kernel reads.

Legend: N rows of logits, S settings of a rule.
"""

from __future__ import annotations

from torch import Tensor

from rlvr_decode import ops
from rlvr_decode.params import Extrapolation
from rlvr_decode.sampling import Sampling

INTEGERS = ("gate", "primary", "top_k")


def rule_numbers(extrapolation: Extrapolation, sampling: Sampling) -> tuple[float, ...]:
    """The S settings in the order of `ops.Rule`; all are exact in float32.

    Without a gate every token is drawn from the extrapolated distribution, as by the gate "all".
    """
    return (
        extrapolation.strength,
        extrapolation.plausibility,
        ops.GATES[extrapolation.gate],
        extrapolation.threshold or 0.0,
        ops.PRIMARIES[extrapolation.primary],
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
    )


def rule_of_rows(numbers_SN: Tensor) -> ops.Rule:
    """The rule of N rows, from their float32 numbers [S, N]."""
    rule = ops.Rule(*numbers_SN)
    return rule._replace(**{name: getattr(rule, name).int() for name in INTEGERS})
