"""Token reweighting: detached factors on advantages, from the old policy's probabilities.

p is π_old of the sampled token. All are computed once on the whole batch and multiply the
advantage before any clipping; none is rescaled to mean one, so most change the step size too.

B responses, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from rlvr_decode.training.objectives.groups import group_mean, group_std
from rlvr_decode.training.objectives.inputs import LossInputs
from rlvr_decode.training.objectives.policy_losses import response_mean


def rare(inputs: LossInputs, alpha: float) -> Tensor:
    """1 + alpha·(1 − p), in [1, 1+alpha] for alpha ≥ 0: unlikely tokens learn more, because that
    is where RLVR's direction Δlog p lives (arXiv 2603.22117). alpha is 0.1 or 0.2 there; a negative
    alpha is the opposite sign, in [1+alpha, 1]."""
    _require(alpha, alpha >= -1, "must be at least −1, or weights would be negative")
    return 1 + alpha * (1 - inputs.old_logp_BT.exp())


def dominate(inputs: LossInputs, alpha: float) -> Tensor:
    """alpha·p + 1 − alpha: unlikely tokens, which dominate the gradient, learn less
    (arXiv 2505.12929); the opposite of `rare`, and reported to help on other tasks."""
    _require(alpha, 0 <= alpha <= 1, "must be from 0 to 1")
    return alpha * inputs.old_logp_BT.exp() + 1 - alpha


def normalize(inputs: LossInputs, alpha: float) -> Tensor:
    """1 / (1 + alpha − p): likely tokens, whose logit gradient is small, catch up."""
    _require(alpha, alpha > 0, "must be positive, or certain tokens would get infinite weight")
    return 1 / (1 + alpha - inputs.old_logp_BT.exp())


def middle(inputs: LossInputs, alpha: float) -> Tensor:
    """alpha + p(1 − p): undecided tokens learn most."""
    _require(alpha, alpha >= 0, "must not be negative")
    p_BT = inputs.old_logp_BT.exp()
    return alpha + p_BT * (1 - p_BT)


def ppl(inputs: LossInputs, alpha: float) -> Tensor:
    """1 − alpha·log PPL(y), with log PPL the response's mean −log p: fluent ones learn more."""
    return 1 - alpha * response_mean(-inputs.old_logp_BT, inputs)


def ppl_norm(inputs: LossInputs, alpha: float) -> Tensor:
    """1 − alpha·z, z the standard score of log PPL(y) among the responses to the same prompt."""
    log_ppl_B = response_mean(-inputs.old_logp_BT, inputs)[:, 0]
    deviation_B = log_ppl_B - group_mean(log_ppl_B, inputs.group_B)
    z_B = deviation_B / (group_std(log_ppl_B, inputs.group_B, ddof=0) + 1e-6)
    return (1 - alpha * z_B)[:, None].expand_as(inputs.old_logp_BT)


REWEIGHTINGS: dict[str, Callable[[LossInputs, float], Tensor]] = {
    "reweight": rare,
    "dominate": dominate,
    "normalize": normalize,
    "middle": middle,
    "ppl": ppl,
    "ppl_norm": ppl_norm,
}


def token_weights(inputs: LossInputs, *, kind: str, alpha: float, on: str) -> Tensor:
    """The weights of one of REWEIGHTINGS on tokens whose advantage has the sign `on` ("both",
    "positive", "negative"), 1 on the others."""
    weight_BT = REWEIGHTINGS[kind](inputs, alpha)
    if on == "both":
        return weight_BT
    advantages_BT = inputs.require("advantages_BT")
    return weight_BT.where(advantages_BT > 0 if on == "positive" else advantages_BT < 0, 1.0)


def reweighted(inputs: LossInputs) -> LossInputs:
    """The batch with its token weights multiplied into its advantages."""
    if inputs.weight_BT is None:
        return inputs
    weighted_BT = inputs.require("advantages_BT") * inputs.weight_BT
    return replace(inputs, advantages_BT=weighted_BT)


def _require(alpha: float, fulfilled: bool, reason: str) -> None:
    if not fulfilled:
        raise ValueError(f"reweighting_alpha={alpha!r} {reason}")
