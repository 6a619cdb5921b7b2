"""The tokens that training moved most, where they stand, and whole responses token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlvr_decode.analyze.tokens import Tokens

_CONTEXT = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A token where it stood: log p as in `Tokens`, and what either model held likeliest."""

    before: str
    token: str
    delta: float
    base_probability: float
    rlvr_probability: float
    base_first: str
    rlvr_first: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A token of the vocabulary, over all its places."""

    token: str
    count: int
    mean_delta: float
    summed_delta: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """Texts of token ids."""

    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]

    def of(self, *ids: int) -> str:
        return str(self.tokenizer.decode(list(ids)))

    def prompt(self, number: int) -> str:
        return self.of(*self.prompts[number])

    def tinted(self, tokens: Tokens, number: int) -> list[tuple[str, float]]:
        """A response as (text, Δ) of each token."""
        where = tokens.of_response(number)
        return [
            (self.of(token), delta)
            for token, delta in zip(
                tokens.token[where].tolist(), tokens.delta[where].tolist(), strict=True
            )
        ]

    def before(self, response: int, position: int) -> str:
        """The end of what came before a token."""
        ids = [*self.prompts[response], *self.responses[response][:position]]
        return self.of(*ids[-_CONTEXT:])


def top_places(tokens: Tokens, words: Words, *, count: int, raised: bool) -> list[Place]:
    """The tokens with the largest Δ, or the smallest; of equal contexts one is shown."""
    order = np.argsort(-tokens.delta if raised else tokens.delta)
    places: dict[tuple[str, str], Place] = {}
    for k in order.tolist():
        place = Place(
            before=words.before(int(tokens.response[k]), int(tokens.position[k])),
            token=words.of(int(tokens.token[k])),
            delta=float(tokens.delta[k]),
            base_probability=math.exp(tokens.base[k]),
            rlvr_probability=math.exp(tokens.rlvr[k]),
            base_first=words.of(int(tokens.base_first[k])),
            rlvr_first=words.of(int(tokens.rlvr_first[k])),
        )
        places.setdefault((place.before, place.token), place)
        if len(places) == count:
            break
    return list(places.values())


def top_kinds(tokens: Tokens, words: Words, *, count: int) -> list[Kind]:
    """Tokens of the vocabulary by how much Δ they carry together, of either sign."""
    ids, inverse, counts = np.unique(tokens.token, return_inverse=True, return_counts=True)
    sums = np.bincount(inverse, weights=tokens.delta)
    order = np.argsort(-np.abs(sums))[:count]
    return [
        Kind(
            token=words.of(int(ids[k])),
            count=int(counts[k]),
            mean_delta=float(sums[k] / counts[k]),
            summed_delta=float(sums[k]),
        )
        for k in order.tolist()
    ]
