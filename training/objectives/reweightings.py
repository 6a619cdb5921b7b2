"""Token reweighting: detached factors on the advantages of tokens, from their probabilities.

B responses, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from rlvr_decode.training.objectives.inputs import LossInputs


def rare(inputs: LossInputs, alpha: float) -> Tensor:
    """1 + alpha·(1 − p_old), in [1, 1+alpha] for alpha ≥ 0: unlikely tokens learn more, because
    that is where RLVR's direction Δlog p lives (arXiv 2603.22117, §5; its alpha is 0.1 to 0.2)."""
    return 1 + alpha * (1 - inputs.old_logp_BT.exp())


REWEIGHTINGS: dict[str, Callable[[LossInputs, float], Tensor]] = {"reweight": rare}


def reweighted(inputs: LossInputs, *, on: str) -> LossInputs:
    """The batch with its token weights multiplied into the advantages of the chosen signs."""
    if inputs.weight_BT is None:
        return inputs
    advantages_BT = inputs.require("advantages_BT")
    keep_BT = {"both": advantages_BT == advantages_BT, "positive": advantages_BT > 0}
    weight_BT = inputs.weight_BT.where(keep_BT.get(on, advantages_BT < 0), 1.0)
    return replace(inputs, advantages_BT=advantages_BT * weight_BT)
