"""Both models' view of the tokens of a prompt, for whoever asks with `POST /v1/delta`.

Legend: K rows of logits, C chosen tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlvr_decode import ops

if TYPE_CHECKING:
    from vllm import SamplingParams

EXTRA_ARG = "rlvr_decode_scoring"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """What to compute for each token of one prompt.

    key        of the side channel that gets the values.
    top        also both models' log p of the `top` most likely tokens of either.
    gate       whose rate of intervention to compute, with its threshold and primary; "none" is
               no rate.
    """

    key: str
    top: int = 0
    gate: str = "none"
    threshold: float | None = None
    primary: str = "rlvr"

    def sampling_params(self) -> SamplingParams:
        """Those of the request that gets the prompt scored; the token it samples is of no use."""
        from vllm import SamplingParams

        return SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            detokenize=False,
            extra_args={EXTRA_ARG: asdict(self)},
        )


def score_rows(
    rlvr_KV: Tensor, base_KV: Tensor, tokens: Sequence[int], position: int, scoring: Scoring
) -> dict[str, Tensor]:
    """Values of the tokens that follow K rows, by name: [K], or [K, C] for the alternatives.

    tokens    the K tokens that the rows predict.
    position  of the first of them in its prompt.
    """
    positions_K = torch.arange(position, position + len(tokens))
    targets_K = torch.tensor(list(tokens), device=rlvr_KV.device)
    chosen_KC = [targets_K[:, None]]
    if scoring.top:
        common = min(rlvr_KV.shape[1], base_KV.shape[1])
        for logits_KV in (rlvr_KV, base_KV):
            chosen_KC.append(logits_KV[:, :common].topk(min(scoring.top, common)).indices)
    tokens_KC = torch.cat(chosen_KC, dim=1)
    found = ops.delta_logprobs(rlvr_KV, base_KV, tokens_KC)
    values = {
        "position": positions_K,
        "rlvr_logprob": found.rlvr[:, 0],
        "base_logprob": found.base[:, 0],
        "delta": found.delta[:, 0],
        "rlvr_entropy": found.rlvr_entropy,
        "base_entropy": found.base_entropy,
        "kl": found.kl,
    }
    if scoring.top:
        values["top_token_ids"] = tokens_KC[:, 1:]
        values["top_rlvr_logprobs"], values["top_base_logprobs"] = (
            found.rlvr[:, 1:],
            found.base[:, 1:],
        )
    if scoring.gate != "none":
        values["rate"] = ops.gated_extrapolate(rlvr_KV, base_KV, _rule(scoring, rlvr_KV)).rate
    return values


def _rule(scoring: Scoring, rlvr_KV: Tensor) -> ops.Rule:
    """The gate, for drawing from the primary's own distribution."""
    settings = {
        "strength": 0.0,
        "plausibility": 0.0,
        "gate": ops.GATES[scoring.gate],
        "threshold": scoring.threshold or 0.0,
        "primary": ops.PRIMARIES[scoring.primary],
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
    }
    rows, device = len(rlvr_KV), rlvr_KV.device
    return ops.Rule(
        **{
            name: torch.full(
                (rows,),
                value,
                dtype=torch.int32 if isinstance(value, int) else torch.float32,
                device=device,
            )
            for name, value in settings.items()
        }
    )
