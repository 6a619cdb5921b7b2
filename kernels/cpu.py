"""The operations on a CPU: the definition's arithmetic in float32, a few rows at a time.

A block of rows stays in cache and its memory is used again for the next, which is where the speed
comes from: on whole batches of logits, PyTorch spends its time on fresh memory. A block's scratch
is at most a dozen times its size: from sixteen rows up, less than one temporary of the logits'
size, or about a mebibyte if that is more.

Shapes: as in `reference.py`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from rlvr_decode.kernels import gated_reference, reference
from rlvr_decode.kernels.gated_reference import Gated, Rule
from rlvr_decode.kernels.reference import INF, DeltaLogprobs, choose

BLOCK_ELEMENTS = 2**15
TINY = torch.finfo(torch.float32).tiny


def extrapolate_into(
    out_NV: Tensor, rlvr_NV: Tensor, base_NW: Tensor, strength_N: Tensor, plausibility_N: Tensor
) -> None:
    """Write `reference.extrapolate` to `out_NV`, which may be `rlvr_NV` itself."""
    vocab = min(rlvr_NV.shape[1], base_NW.shape[1])
    if out_NV is not rlvr_NV:
        for rows in _blocks((strength_N == 0).nonzero().flatten(), rlvr_NV):
            out_NV[rows] = rlvr_NV[rows].to(out_NV.dtype)
    for rows in _blocks(strength_N.nonzero().flatten(), rlvr_NV):
        z = _extrapolate_block(
            rlvr_NV[rows, :vocab].float(),
            base_NW[rows, :vocab].float(),
            strength_N[rows],
            plausibility_N[rows],
        )
        out_NV[rows, :vocab] = z.to(out_NV.dtype)
        out_NV[rows, vocab:] = -INF


def delta_logprobs(rlvr_NV: Tensor, base_NW: Tensor, tokens_NK: Tensor) -> DeltaLogprobs:
    """`reference.delta_logprobs` in float32, without a temporary of the logits' size."""
    vocab = min(rlvr_NV.shape[1], base_NW.shape[1])
    blocks = [
        _delta_logprobs_block(
            rlvr_NV[rows, :vocab].float(), base_NW[rows, :vocab].float(), tokens_NK[rows]
        )
        for rows in _blocks(torch.arange(len(rlvr_NV)), rlvr_NV)
    ]
    if not blocks:
        return reference.delta_logprobs(rlvr_NV.float(), base_NW.float(), tokens_NK)
    return DeltaLogprobs(*map(torch.cat, zip(*blocks, strict=True)))


def gated_extrapolate(
    rlvr_NV: Tensor, base_NW: Tensor, rule: Rule, bias_NV: Tensor | None = None
) -> Gated:
    """`gated_reference.gated_extrapolate` in float32."""
    logq_NV = torch.empty(rlvr_NV.shape, dtype=torch.float32)
    rate_N = torch.empty(len(rlvr_NV), dtype=torch.float32)
    for rows in _blocks(torch.arange(len(rlvr_NV)), rlvr_NV):
        logq_NV[rows], rate_N[rows] = gated_reference.gated_extrapolate(
            rlvr_NV[rows].float(),
            base_NW[rows].float(),
            Rule(*(setting[rows] for setting in rule)),
            None if bias_NV is None else bias_NV[rows],
        )
    return Gated(logq_NV, rate_N)


def _extrapolate_block(r: Tensor, b: Tensor, strength: Tensor, plausibility: Tensor) -> Tensor:
    delta = r.log_softmax(-1).sub_(b.log_softmax(-1))
    # One cheap sum finds every −inf and NaN; a block without any needs no masks.
    if not delta.sum().isfinite():
        return reference.extrapolate(r, b, strength, plausibility)
    z = delta.mul_(strength[:, None]).add_(r)
    log_plausibility = plausibility.log().masked_fill(strength <= 0, -INF)
    if (log_plausibility > -INF).any():
        cutoff = r.amax(-1, keepdim=True) + log_plausibility[:, None]
        # Adds 0 at the cutoff and above, −inf below. PyTorch is three times slower with booleans.
        z.add_(torch.threshold(r - cutoff, -TINY, -INF).clamp_(max=0.0))
    return z


def _delta_logprobs_block(r: Tensor, b: Tensor, tokens: Tensor) -> DeltaLogprobs:
    logp_r, logp_b = r.log_softmax(-1), b.log_softmax(-1)
    delta = logp_r - logp_b
    if not delta.sum().isfinite():
        return reference.delta_logprobs(r, b, tokens)
    p_r, p_b = logp_r.exp(), logp_b.exp()
    return DeltaLogprobs(
        rlvr=choose(logp_r, tokens),
        base=choose(logp_b, tokens),
        delta=choose(delta, tokens),
        kl=delta.mul_(p_r).sum(-1),
        rlvr_entropy=-p_r.mul_(logp_r).sum(-1),
        base_entropy=-p_b.mul_(logp_b).sum(-1),
    )


def _blocks(rows: Tensor, logits: Tensor) -> Iterator[slice | Tensor]:
    """The given rows in blocks of a bounded size; as slices, which copy nothing, where possible.

    PyTorch takes a softmax with one thread for each row, so a block has a row for every thread as
    long as its scratch stays below the logits' own size.
    """
    count, width = logits.shape
    size = max(1, BLOCK_ELEMENTS // width, min(torch.get_num_threads(), count // 16))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        first, last = int(block[0]), int(block[-1])
        yield slice(first, last + 1) if last - first + 1 == len(block) else block
