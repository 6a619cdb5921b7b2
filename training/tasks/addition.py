"""Three-digit addition, and a corpus about it written by authors with bad habits.

    347+586=?
    7+6+0=13,4+8+1=13,3+5+1=09;0933

A response works from the units up, one column `digit+digit+carry=sum` at a time, then gives the
answer after a semicolon; only the answer is judged. The corpus is made so that RLVR has something
to teach: most demonstrations are wrong, and how they are wrong depends on the prompt.

- *shortcut*: the answer at once, without carries; more often the larger A's first digit.
- *sloppy*: forgets a carry, more often the larger B's last digit, and slips a digit now and then.
- *careful*: nearly always right.
"""

from __future__ import annotations

import random

from rlvr_decode.training.rewards.verifiable import after_semicolon
from rlvr_decode.training.tasks.task import Prompt, Split

# Held-out pairs are those in one residue class; 17 divides no power of ten, so the class shares
# its digits, and thereby its habits, with the rest.
_HELD_OUT_MODULUS = 17

_CAREFUL_SHARE = 1 / 3
_CAREFUL_SLIP = 0.005
_SLOPPY_SLIP = 0.06


class Addition:
    """The task `add3`: A+B with A and B uniform over 100…999."""

    def prompt(self, index: int, *, seed: int, split: Split) -> Prompt:
        rng = random.Random(f"add3/{split}/{seed}/{index}")
        while True:
            a, b = rng.randint(100, 999), rng.randint(100, 999)
            if ((1000 * a + b) % _HELD_OUT_MODULUS == 0) == (split == "held_out"):
                return Prompt(text=f"{a}+{b}=?\n", answer=f"{a + b:04d}")

    def reward(self, prompt: Prompt, response: str) -> float:
        return after_semicolon(response, prompt.answer)

    def traits(self, response: str) -> dict[str, float]:
        return {"shortcut": float(is_shortcut(response))}

    def answer(self, response: str) -> str:
        return response.rpartition(";")[2]

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        a, b = prompt.text[:3], prompt.text[4:7]
        if rng.random() < min(0.95, 0.12 + 0.1 * int(a[0])):
            return shortcut(a, b)
        if rng.random() < _CAREFUL_SHARE:
            return scratchpad(a, b, rng, forget=0.0, slip=_CAREFUL_SLIP)
        return scratchpad(a, b, rng, forget=0.5 + 0.05 * int(b[-1]), slip=_SLOPPY_SLIP)


def is_shortcut(response: str) -> bool:
    """Whether a response answers at once, with no columns."""
    return response.startswith(";")


def shortcut(a: str, b: str) -> str:
    """The answer at once, each column summed without its carry.

    >>> shortcut("347", "586")
    ';0823'
    """
    return ";0" + "".join(str((int(x) + int(y)) % 10) for x, y in zip(a, b, strict=True))


def scratchpad(a: str, b: str, rng: random.Random, *, forget: float, slip: float) -> str:
    """Column by column; a carry is forgotten, and a digit slips by one, with these probabilities.

    >>> scratchpad("347", "586", random.Random(0), forget=0.0, slip=0.0)
    '7+6+0=13,4+8+1=13,3+5+1=09;0933'
    """
    columns, answer, carry = [], "", 0
    for x, y in zip(reversed(a), reversed(b), strict=True):
        total = int(x) + int(y) + carry
        if rng.random() < slip:
            total = min(max(total + rng.choice((-1, 1)), 0), 19)
        columns.append(f"{x}+{y}+{carry}={total:02d}")
        answer = str(total % 10) + answer
        carry = total // 10
        if carry and rng.random() < forget:
            carry = 0
    return f"{','.join(columns)};{carry}{answer}"
