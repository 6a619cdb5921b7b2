"""From losses of tokens to one loss: the weight each response's tokens get in the batch.

Every aggregation is Σ_i scale_i Σ_t loss_it over the counted tokens, with scales from counts of
the whole batch, so micro-batches add up exactly whatever their shapes.

B responses, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlvr_decode.training.objectives.inputs import LossInputs, Totals


def token_mean(inputs: LossInputs, *, max_tokens: int | None = None) -> Tensor:
    """Every token of the batch counts the same: 1/Σ|y| (DAPO, arXiv 2503.14476, eq. 8)."""
    return torch.full_like(_lengths(inputs), 1 / max(_totals(inputs).tokens, 1.0))


def sequence_mean(inputs: LossInputs, *, max_tokens: int | None = None) -> Tensor:
    """Every response counts the same: the mean over responses of token means, 1/(N|y_i|)
    (GRPO, arXiv 2402.03300). A response without a counted token contributes 0."""
    return 1 / (_lengths(inputs).clamp(min=1) * _totals(inputs).responses)


def sequence_sum(inputs: LossInputs, *, max_tokens: int | None = None) -> Tensor:
    """The mean over responses of token sums, 1/N: the plain policy gradient of E[R]."""
    return torch.full_like(_lengths(inputs), 1 / _totals(inputs).responses)


def constant(inputs: LossInputs, *, max_tokens: int | None = None) -> Tensor:
    """Token sums over a constant length, 1/(N·max_tokens): no length enters the gradient
    (Dr. GRPO, arXiv 2503.20783)."""
    assert max_tokens is not None
    return torch.full_like(_lengths(inputs), 1 / (_totals(inputs).responses * max_tokens))


def prompt_mean(inputs: LossInputs, *, max_tokens: int | None = None) -> Tensor:
    """Every prompt counts the same: the mean over prompts of the token mean of its group."""
    return 1 / (
        inputs.require("group_tokens_B").to(inputs.logp_BT.dtype).clamp(min=1)
        * _totals(inputs).prompts
    )


def list_mean(inputs: LossInputs, *, max_tokens: int | None = None) -> Tensor:
    """The mean over prompts of the sum over their responses of token means (LPO, whose
    coefficients already carry 1/K; arXiv 2605.06139, alg. 1)."""
    return 1 / (_lengths(inputs).clamp(min=1) * _totals(inputs).prompts)


def list_sum(inputs: LossInputs, *, max_tokens: int | None = None) -> Tensor:
    """The mean over prompts of the sum over all tokens of their responses (TPO)."""
    return torch.full_like(_lengths(inputs), 1 / _totals(inputs).prompts)


def list_constant(inputs: LossInputs, *, max_tokens: int | None = None) -> Tensor:
    """The same over a constant length."""
    assert max_tokens is not None
    return torch.full_like(_lengths(inputs), 1 / (_totals(inputs).prompts * max_tokens))


AGGREGATIONS: dict[str, Callable[..., Tensor]] = {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "sequence_sum": sequence_sum,
    "constant": constant,
    "prompt_mean": prompt_mean,
    "list_mean": list_mean,
    "list_sum": list_sum,
    "list_constant": list_constant,
}


def _lengths(inputs: LossInputs) -> Tensor:
    return inputs.mask_BT.sum(-1).to(inputs.logp_BT.dtype)


def _totals(inputs: LossInputs) -> Totals:
    assert inputs.totals is not None
    return inputs.totals
