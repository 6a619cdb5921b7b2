"""Effective rank: how many directions a response's hidden states really use.

Singular values come from Gram matrices, so nothing of size D × D is ever formed: overlapping
windows are diagonal blocks of one banded Gram matrix, and centring is a projection of it. A Gram
matrix squares the condition number, so it is accumulated in float64, where the squared small
singular values survive; the inputs may be of any floating dtype.

Ranks are values, not losses: no gradient flows through this file.

Legend: B responses, T tokens, D hidden width, W windows, w window length, s stride.
"""

from __future__ import annotations

import torch
from torch import Tensor

REDUCTIONS = ("min", "mean")
POWERS = (1, 2)
# Windows diagonalised at once: 4096 Gram matrices of 64 × 64 in float64 are 128 MiB.
_GRAM_ELEMENTS = 4096 * 64 * 64


@torch.no_grad()
def effective_rank(hidden_TD: Tensor, *, power: int = 1, center: bool = True) -> Tensor:
    """The number of directions a set of vectors spreads over, as the exponential of an entropy.

    erank(H) = exp(−Σ p_i ln p_i), p_i = s_i^power / Σ_j s_j^power, over the singular values s of H
    (Roy and Vetterli, 2007). power 1 is their definition; power 2 is the same entropy over the
    eigenvalues of the covariance, the reading of arXiv 2601.06160. `center` subtracts the mean
    token first.

    hidden_TD: [..., T, D] → [...], float64, from 1 to min(T, D) (one less than T when centred).
    All-equal rows have no spread at all and count as 1.
    """
    _check_power(power)
    hidden_TD = hidden_TD.double()
    if center:
        hidden_TD = hidden_TD - hidden_TD.mean(-2, keepdim=True)
    tall = hidden_TD.shape[-2] > hidden_TD.shape[-1]
    gram = hidden_TD.mT @ hidden_TD if tall else hidden_TD @ hidden_TD.mT
    return _rank_of_gram(gram, power)


def trajectory_rank(
    hidden_BTD: Tensor,
    mask_BT: Tensor,
    *,
    window: int = 64,
    stride: int = 32,
    reduce: str = "min",
    power: int = 1,
    center: bool = True,
) -> Tensor:
    """One effective rank per response: the least (or mean) over windows sliding along it.

    The minimum over windows of 64 tokens is MRPO's score (arXiv 2602.02545, §A.4 of our sheet);
    the paper's stride and layer are not known, 32 is our default. A response shorter than the
    window is one window. `mask_BT` marks the response's tokens; the rest may hold anything.

    Returns rank_B, float64. Raises ValueError on an empty response or an unknown setting.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce={reduce!r}: must be one of {', '.join(REDUCTIONS)}")
    ranks_BW = window_ranks(
        hidden_BTD, mask_BT, window=window, stride=stride, power=power, center=center
    )
    return ranks_BW.nan_to_num(torch.inf).amin(1) if reduce == "min" else ranks_BW.nanmean(1)


@torch.no_grad()
def window_ranks(
    hidden_BTD: Tensor,
    mask_BT: Tensor,
    *,
    window: int = 64,
    stride: int = 32,
    power: int = 1,
    center: bool = True,
) -> Tensor:
    """The effective rank of every window of every response, NaN past a response's last window.

    Windows start at tokens 0, s, 2s, … of the response and are whole, so up to s − 1 tokens at the
    end may lie in none. Memory beyond the result is one response in float64 and 128 MiB of Gram
    matrices. Returns ranks_BW, float64.
    """
    _check_power(power)
    if window < 2 or stride < 1:
        raise ValueError(f"window={window}, stride={stride}: need window ≥ 2 and stride ≥ 1")
    lengths = mask_BT.bool().sum(1).tolist()
    if 0 in lengths:
        raise ValueError(f"response {lengths.index(0)} has no tokens: drop it before ranking")
    window = min(window, max(lengths))  # a longer one is never filled
    counts = [max(1, (length - window) // stride + 1) for length in lengths]
    ranks_BW = hidden_BTD.new_full((len(counts), max(counts)), torch.nan, dtype=torch.float64)
    per_chunk = max(1, _GRAM_ELEMENTS // window**2)
    for rows in _chunks(counts, per_chunk):
        grams = torch.cat(
            [_window_grams(hidden_BTD[b][mask_BT[b].bool()], window, stride, center) for b in rows]
        )
        ranks = torch.split(_rank_of_gram(grams, power), [counts[b] for b in rows])
        for b, ranks_W in zip(rows, ranks, strict=True):
            ranks_BW[b, : counts[b]] = ranks_W
    return ranks_BW


@torch.no_grad()
def prefix_ranks(
    hidden_TD: Tensor, *, stride: int = 40, power: int = 1, center: bool = True
) -> Tensor:
    """The effective rank of a response's growing prefix, every `stride` tokens: VERL's signal.

    Its level is VERL's ER, its differences ERV and ERA (arXiv 2509.23808). The cost grows with the
    cube of min(T, D), unlike windows. Returns ranks_W, the last one over the whole response.
    """
    ends = [*range(stride, len(hidden_TD), stride), len(hidden_TD)]
    return torch.stack([effective_rank(hidden_TD[:e], power=power, center=center) for e in ends])


def _window_grams(hidden_TD: Tensor, window: int, stride: int, center: bool) -> Tensor:
    """Gram matrices of all windows of one response, [W, window, window], float64."""
    tokens, width = hidden_TD.shape
    padded_TD = hidden_TD.new_zeros(tokens + window, width, dtype=torch.float64)
    padded_TD[:tokens] = hidden_TD
    if center:
        # No window's centred Gram changes; a large common mean would drown it in rounding.
        padded_TD[:tokens] -= padded_TD[:tokens].mean(0)
    if tokens < window:
        whole_TD = padded_TD[:window]  # zero rows give zero eigenvalues, which carry no entropy
        return (whole_TD @ whole_TD.mT).unsqueeze(0)
    if window % stride:
        windows_WDw = padded_TD[:tokens].unfold(0, window, stride)
        grams = torch.bmm(windows_WDw.mT, windows_WDw)
    else:
        grams = _banded_grams(padded_TD, (tokens - window) // stride + 1, window, stride)
    if center:
        grams = grams - grams.mean(1, keepdim=True)
        grams = grams - grams.mean(2, keepdim=True)
    return grams


def _banded_grams(padded_TD: Tensor, count: int, window: int, stride: int) -> Tensor:
    """Window Grams that share their overlaps: each product of two tokens is taken once.

    Block j (s tokens) is multiplied with the w tokens from its start on; the window from block i
    reads its upper triangle out of the bands of blocks i … i + w/s − 1. What lies past the last
    window is never read, so the padding may hold anything.
    """
    blocks = window // stride
    bands = count + blocks - 1
    blocks_JDs = padded_TD[: bands * stride].unfold(0, stride, stride)
    ahead_JDw = padded_TD[: bands * stride + window - stride].unfold(0, window, stride)
    band_Jsw = torch.bmm(blocks_JDs.mT, ahead_JDw)
    grams = padded_TD.new_empty(count, window, window)
    for i in range(blocks):
        start = i * stride
        grams[:, start : start + stride, start:] = band_Jsw[i : i + count, :, : window - start]
    upper = grams.triu()
    symmetric: Tensor = upper + upper.triu(1).mT
    return symmetric


def _rank_of_gram(gram: Tensor, power: int) -> Tensor:
    weights = torch.linalg.eigvalsh(gram).clamp_min(0)  # squared singular values, ≥ 0 but rounding
    if power == 1:
        weights = weights.sqrt()
    total = weights.sum(-1, keepdim=True)
    p = weights / total.where(total > 0, 1)
    rank: Tensor = torch.special.entr(p).sum(-1).exp()
    return rank


def _chunks(counts: list[int], limit: int) -> list[list[int]]:
    """Consecutive rows grouped so that a group's windows stay within `limit` where one row does."""
    chunks: list[list[int]] = [[]]
    held = 0
    for row, count in enumerate(counts):
        if chunks[-1] and held + count > limit:
            chunks.append([])
            held = 0
        chunks[-1].append(row)
        held += count
    return chunks


def _check_power(power: int) -> None:
    if power not in POWERS:
        raise ValueError(f"power={power!r}: must be 1 (Roy and Vetterli) or 2 (covariance)")
