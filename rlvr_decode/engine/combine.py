"""From the logits of both models to those of the step's rows, each by its own settings.

Legend: N rows, K of them that use base, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlvr_decode import ops
from rlvr_decode.engine.rows import Rows

# Nats below rlvr's own logit: a probability of 0 in float32, but still an order.
RESERVE = 1e4


def combine(rlvr_NV: Tensor, base_KV: Tensor, rows: Rows) -> Tensor:
    """Extrapolated logits of the rows that use base, rlvr's own of the others: [N, V], fp32."""
    if rows.paired_K is None:
        return extrapolated(rlvr_NV, base_KV, rows)
    of_paired = rows._replace(
        strength_N=rows.strength_N[rows.paired_K], plausibility_N=rows.plausibility_N[rows.paired_K]
    )
    logits_NV = rlvr_NV.float()
    logits_NV[rows.paired_K] = extrapolated(rlvr_NV[rows.paired_K], base_KV, of_paired)
    return logits_NV


def extrapolated(rlvr_NV: Tensor, base_NV: Tensor, rows: Rows) -> Tensor:
    z_NV = ops.extrapolate(rlvr_NV, base_NV, rows.strength_N, rows.plausibility_N)
    return hold_in_reserve(z_NV, rlvr_NV, base_NV, rows) if rows.cutting else z_NV


def hold_in_reserve(z_NV: Tensor, rlvr_NV: Tensor, base_NV: Tensor, rows: Rows) -> Tensor:
    """Give implausible tokens a finite logit, too low to be drawn beside a plausible one.

    A grammar or another mask comes later and may forbid every plausible token; rlvr's order then
    decides among the rest, where −inf everywhere would leave nothing to draw.
    """
    common = min(rlvr_NV.shape[1], base_NV.shape[1])
    z, rlvr = z_NV[:, :common], rlvr_NV[:, :common]
    of_rows_N = (rows.strength_N > 0) & (rows.plausibility_N > 0)
    cut = z.isneginf() & ~rlvr.isneginf() & of_rows_N[:, None]
    z.copy_(torch.where(cut, rlvr - RESERVE, z))
    return z_NV
