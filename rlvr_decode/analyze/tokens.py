"""Every token of some responses, as both models see it.

B responses, T tokens, N rows of logits (one a response token), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlvr_decode import ops
from rlvr_decode.evaluate.with_transformers import Models
from rlvr_decode.kernels.gated_reference import STATISTICS

ELEMENTS = 1 << 27
"""Of the logits of one model that are held at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """One entry for each response token; logarithms are natural.

    response      number of the response it is in, and `position` its place there.
    token         its id.
    base, rlvr    its log p under either model, and `delta` the difference, rlvr − base.
    base_entropy, rlvr_entropy, kl, jsd  of the position: both models' entropies, KL(rlvr ‖ base)
                  and the Jensen–Shannon divergence.
    base_first, rlvr_first  the token each model holds likeliest there.
    """

    response: NDArray[np.int64]
    position: NDArray[np.int64]
    token: NDArray[np.int64]
    base: NDArray[np.float64]
    rlvr: NDArray[np.float64]
    delta: NDArray[np.float64]
    base_entropy: NDArray[np.float64]
    rlvr_entropy: NDArray[np.float64]
    kl: NDArray[np.float64]
    jsd: NDArray[np.float64]
    base_first: NDArray[np.int64]
    rlvr_first: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.token)

    def of_response(self, number: int) -> slice:
        """Where the tokens of one response are."""
        first, last = np.searchsorted(self.response, [number, number + 1])
        return slice(int(first), int(last))


@torch.no_grad()
def read_tokens(
    models: Models, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> Tokens:
    """Both models on the same responses, each after the prompt beside it, as token ids."""
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    batch = max(1, ELEMENTS // (longest * models.rlvr.config.vocab_size))
    parts = []
    for start in range(0, len(prompts), batch):
        some = slice(start, start + batch)
        parts.append(_read(models, prompts[some], responses[some], first=start))
    columns = {
        field.name: np.concatenate([part[field.name] for part in parts]) for field in fields(Tokens)
    }
    return Tokens(**columns)


def _read(
    models: Models, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], first: int
) -> dict[str, NDArray[np.generic]]:
    device = models.rlvr.device
    whole = [torch.tensor([*p, *r]) for p, r in zip(prompts, responses, strict=True)]
    # Padded on the right, where a causal model does not look.
    ids_BT = nn.utils.rnn.pad_sequence(whole, batch_first=True).to(device)
    at = [
        (row, len(prompt) + place)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        for place in range(len(response))
    ]
    row_N, place_N = torch.tensor(at, device=device).T
    rlvr_NV, base_NV = (
        model(input_ids=ids_BT).logits[row_N, place_N - 1].float()
        for model in (models.rlvr, models.base)
    )
    token_N = ids_BT[row_N, place_N]
    seen = ops.delta_logprobs(rlvr_NV, base_NV, token_N)
    start_N = torch.tensor([len(prompt) for prompt in prompts], device=device)[row_N]
    columns: dict[str, Tensor] = {
        "response": row_N + first,
        "position": place_N - start_N,
        "token": token_N,
        "base": seen.base,
        "rlvr": seen.rlvr,
        "delta": seen.delta,
        "base_entropy": seen.base_entropy,
        "rlvr_entropy": seen.rlvr_entropy,
        "kl": seen.kl,
        "jsd": jensen_shannon(rlvr_NV, base_NV),
        "base_first": base_NV.argmax(-1),
        "rlvr_first": rlvr_NV.argmax(-1),
    }
    return {
        name: (column.double() if column.is_floating_point() else column).cpu().numpy()
        for name, column in columns.items()
    }


def jensen_shannon(rlvr_NV: Tensor, base_NV: Tensor) -> Tensor:
    """The divergence that the gate `jsd` compares, [N]."""
    width = min(rlvr_NV.shape[1], base_NV.shape[1])
    logp_r, logp_b = (logits[:, :width].log_softmax(-1) for logits in (rlvr_NV, base_NV))
    return STATISTICS["jsd"](logp_r, logp_b, logp_b)
