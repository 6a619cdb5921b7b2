"""What stitching needs of text: where thoughts begin, and whether two traces are the same."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

# A reasoning step begins after a line break, or after a sentence.
STEP = r"\n\s*|(?<=[.!?])\s+"

_GRAM = 3


def step_starts(response: str, pattern: str = STEP) -> list[int]:
    """Where the steps of a response begin, as character offsets; `pattern` matches separators.

    >>> step_starts("Add. Then carry.")
    [0, 5]
    """
    starts = {0, *(match.end() for match in re.finditer(pattern, response))}
    return sorted(start for start in starts if start < max(1, len(response)))


def truncation_points(response: str, count: int, pattern: str = STEP) -> list[int]:
    """At most `count` step starts, evenly spread from the first on."""
    starts = step_starts(response, pattern)
    count = min(count, len(starts))
    return [starts[i * len(starts) // count] for i in range(count)]


def similarity(left: str, right: str) -> float:
    """Cosine of two texts' counts of character trigrams, from 0 to 1; case and spacing aside.

    A stand-in for the papers' text embedding that needs no model: it catches copies with small
    edits, not paraphrases.
    """
    a, b = _grams(left), _grams(right)
    dot = sum(count * b[gram] for gram, count in a.items())
    return dot / math.sqrt(_square(a) * _square(b))


def distinct(texts: Sequence[str], threshold: float) -> list[int]:
    """The places of texts that are not near-duplicates (similarity above threshold) of earlier
    kept ones."""
    kept: list[int] = []
    for place, text in enumerate(texts):
        if all(similarity(text, texts[other]) <= threshold for other in kept):
            kept.append(place)
    return kept


def _grams(text: str) -> Counter[str]:
    # The padding gives even an empty text one trigram.
    padded = f"  {' '.join(text.lower().split())} "
    return Counter(padded[i : i + _GRAM] for i in range(len(padded) - _GRAM + 1))


def _square(grams: Counter[str]) -> int:
    return sum(count * count for count in grams.values())
