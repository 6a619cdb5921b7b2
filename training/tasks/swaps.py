"""Who has a thing after some swaps, in sentences, and a corpus written by authors with bad habits.

    Ann has a hat, Bob a pen, Eve a cup. Ann and Eve swap. Bob and Eve swap. Who has the pen?
    Bob has it. Ann and Eve swap: Bob. Bob and Eve swap: Eve. So Eve.

A response follows the thing from swap to swap, a sentence each; only the last sentence is judged.
As with addition, most demonstrations are wrong, and how they are wrong depends on the prompt:

- *shortcut*: who has it at the start, at once; more often the later that person's name.
- *hasty*: leaves out the last swap, more often the later the names of those who swap.
- *careful*: nearly always right.
"""

from __future__ import annotations

import random
import re
import zlib

from rlvr_decode.training.tasks.task import Prompt, Split

NAMES = ("Ann", "Bob", "Dan", "Eve", "Ida", "Kim", "Leo", "Max", "Tom", "Zoe")
THINGS = ("bag", "box", "cup", "fan", "hat", "jar", "key", "map", "pen", "toy")
PEOPLE, SWAPS = 3, 4
_HELD_OUT_MODULUS = 17

_CAREFUL_SHARE = 1 / 3
_CAREFUL_SLIP = 0.005
_HASTY_SLIP = 0.04

_SWAP = re.compile(r"(\w+) and (\w+) swap\.")
_LAST = re.compile(r"So (\w+)\.$")


class Swaps:
    """The task `swaps`: three people, three things, four swaps."""

    def prompt(self, index: int, *, seed: int, split: Split) -> Prompt:
        rng = random.Random(f"swaps/{split}/{seed}/{index}")
        while True:
            text, answer = _puzzle(rng)
            if (zlib.crc32(text.encode()) % _HELD_OUT_MODULUS == 0) == (split == "held_out"):
                return Prompt(text=text, answer=answer)

    def reward(self, prompt: Prompt, response: str) -> float:
        return float(self.answer(response) == prompt.answer)

    def answer(self, response: str) -> str:
        """The name that a response ends with, or nothing."""
        found = _LAST.search(response)
        return found[1] if found else ""

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        owner, swaps = _read(prompt.text)
        if rng.random() < 0.15 + 0.08 * NAMES.index(owner):
            return f"So {owner}."
        if rng.random() < _CAREFUL_SHARE:
            return solution(owner, swaps, rng, hasty=0.0, slip=_CAREFUL_SLIP)
        hasty = 0.45 + 0.05 * max(map(NAMES.index, swaps[-1]))
        return solution(owner, swaps, rng, hasty=hasty, slip=_HASTY_SLIP)


def solution(
    owner: str, swaps: list[tuple[str, str]], rng: random.Random, *, hasty: float, slip: float
) -> str:
    """Swap by swap; the last one is left out, and a swap misread, with these probabilities.

    >>> solution("Bob", [("Ann", "Eve"), ("Bob", "Eve")], random.Random(0), hasty=0, slip=0)
    'Bob has it. Ann and Eve swap: Bob. Bob and Eve swap: Eve. So Eve.'
    """
    sentences = [f"{owner} has it."]
    if rng.random() < hasty:
        swaps = swaps[:-1]
    for one, other in swaps:
        if rng.random() < slip:
            owner = rng.choice((one, other))
        elif owner in (one, other):
            owner = other if owner == one else one
        sentences.append(f"{one} and {other} swap: {owner}.")
    return " ".join([*sentences, f"So {owner}."])


def _puzzle(rng: random.Random) -> tuple[str, str]:
    people, things = sorted(rng.sample(NAMES, PEOPLE)), rng.sample(THINGS, PEOPLE)
    has = [f"{name} a {thing}" for name, thing in zip(people, things, strict=True)]
    swaps = [sorted(rng.sample(people, 2)) for _ in range(SWAPS)]
    start, thing = rng.choice(list(zip(people, things, strict=True)))
    owner = start
    for one, other in swaps:
        owner = {one: other, other: one}.get(owner, owner)
    facts = f"{has[0].replace(' a ', ' has a ')}, {', '.join(has[1:])}."
    events = " ".join(f"{one} and {other} swap." for one, other in swaps)
    return f"{facts} {events} Who has the {thing}?\n", owner


def _read(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Who has the thing at the start, and who swaps with whom."""
    thing = text.rpartition(" the ")[2].rstrip("?\n")
    facts = text.partition(".")[0].replace(" has ", " ")
    owners = {words.split()[2]: words.split()[0] for words in facts.split(", ")}
    return owners[thing], [(one, other) for one, other in _SWAP.findall(text)]
