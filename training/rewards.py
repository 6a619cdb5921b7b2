"""Verifiable rewards: pure functions from a response and the right answer to a number.

Text is only compared and parsed, never evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

Reward = Callable[[str, str], float]

# ASCII digits only, and short enough that comparing is cheap.
_NUMBER = re.compile(r"(?<![\w.])-?[0-9]{1,100}(?:,[0-9]{3})*(?:\.[0-9]{1,100})?(?![\w])")


def exact(response: str, answer: str) -> float:
    """1 if the response is the answer, up to white space around it."""
    return float(response.strip() == answer.strip())


def after_semicolon(response: str, answer: str) -> float:
    """1 if what follows the last semicolon is the answer, character for character.

    >>> after_semicolon("7+6+0=13,4+8+1=13,3+5+1=09;0933", "0933")
    1.0
    """
    return float(";" in response and response.rpartition(";")[2] == answer)


def last_number(response: str, answer: str) -> float:
    """1 if the last number in the response equals the answer in value.

    >>> last_number("12 + 1,000 makes 1,012.0", "1012")
    1.0
    """
    numbers = _NUMBER.findall(response)
    if not numbers:
        return 0.0
    return float(_decimal(numbers[-1]) == _decimal(answer))


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        raise ValueError(f"answer {text!r}: last_number needs a number; use exact") from None


REWARDS: dict[str, Reward] = {
    "exact": exact,
    "after_semicolon": after_semicolon,
    "last_number": last_number,
}
