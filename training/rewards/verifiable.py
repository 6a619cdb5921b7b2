"""Verifiable rewards: pure functions from a response and the right answer to a number.

Text is only compared and parsed, never evaluated. A reward may return None: it does not apply to
that response. `judging.py` runs those that can be slow or hang where they can be killed.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

Reward = Callable[..., float | None]
"""(response, answer, **options) -> reward."""

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


# Where an answer without LaTeX is looked for; ASCII digits only, a fraction allowed.
_PLAIN_NUMBER = re.compile(
    r"(?<![\w.])-?[0-9]{1,100}(?:,[0-9]{3})*(?:\.[0-9]{1,100}|/[0-9]{1,100})?(?![\w])"
)
_TAIL = 4000


def math_verify(response: str, answer: str) -> float:
    """1 if the response's last formula equals the answer mathematically, as Math-Verify sees it.

    Both are read as LaTeX (\\boxed{…}, $…$); a response without any is judged by its last number
    or fraction. Only the last 4000 characters of a response are read. Math-Verify's own reader
    of plain expressions is left out, because it evaluates text; so are its time-outs, because they
    work in a main thread only: the judge's apply.

    Raises ValueError if the answer is not mathematics.
    """
    from math_verify import (  # type: ignore[import-untyped]
        LatexExtractionConfig,
        parse,
        verify,
    )

    latex = [LatexExtractionConfig()]
    plain = answer.replace("\\$", "").strip()
    quoted = plain if "$" in plain or "\\boxed" in plain else f"${plain}$"
    gold = parse(quoted, latex, parsing_timeout=None)
    if not gold:
        raise ValueError(f"answer {answer!r}: math_verify needs LaTeX; use exact")
    tail = response[-_TAIL:]
    found = parse(tail, latex, parsing_timeout=None)
    if not found and (numbers := _PLAIN_NUMBER.findall(tail)):
        found = parse(f"${numbers[-1]}$", latex, parsing_timeout=None)
    return float(verify(gold, found, timeout_seconds=None))


def regex(response: str, answer: str, *, pattern: str, max_length: int = 100_000) -> float:
    """1 if the whole response has the pattern's form; "." matches newlines too.

    The answer is not looked at. A response of more than `max_length` characters gets 0.

    >>> regex("<think>so</think>4", "4", pattern="<think>.*</think>[0-9]+")
    1.0
    """
    if len(response) > max_length:
        return 0.0
    return float(re.fullmatch(pattern, response, re.DOTALL) is not None)


REWARDS: dict[str, Reward] = {
    "exact": exact,
    "after_semicolon": after_semicolon,
    "last_number": last_number,
    "math_verify": math_verify,
    "regex": regex,
}


def _boxed(response: str) -> str:
    """What is in the last \\boxed{…}, or else the last number."""
    _, box, rest = response.rpartition("\\boxed{")
    depth = 1
    for at, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if box and depth == 0:
            return rest[:at]
    return _last_number(response)


def _last_number(response: str) -> str:
    numbers = _NUMBER.findall(response)
    return str(_decimal(numbers[-1]).normalize()) if numbers else ""


# What a response's final answer is in the eyes of a reward, right or wrong.
FINAL: dict[str, Callable[[str], str]] = {
    "exact": str.strip,
    "after_semicolon": lambda response: response.rpartition(";")[2],
    "last_number": _last_number,
    "math_verify": _boxed,
}

# Linear in the length of the text and unable to crash: judged in the trainer's own process.
CHEAP = ("exact", "after_semicolon", "last_number")


def find_reward(name: str, options: Mapping[str, Any]) -> Reward:
    """The reward of that name, or the function that `module:function` names, with its options.

    Raises ValueError for an unknown name or option and for a pattern that is none.
    """
    if name in REWARDS:
        reward = REWARDS[name]
    elif ":" in name:
        module, _, function = name.partition(":")
        found = vars(importlib.import_module(module)).get(function)
        if not callable(found):
            raise ValueError(f"reward {name!r}: {module} has no function {function!r}")
        reward = found
    else:
        known = ", ".join(REWARDS)
        raise ValueError(f"reward {name!r}: unknown; known: {known}, or module:function")
    try:
        inspect.signature(reward).bind("", "", **options)
    except TypeError as error:
        raise ValueError(f"reward {name!r}: {error}") from None
    if reward is regex:
        try:
            re.compile(options["pattern"])
        except re.error as error:
            raise ValueError(f"reward 'regex': pattern {options['pattern']!r}: {error}") from None
    return partial(reward, **options)
