"""Answers that try to hang a reward, to run in it, or to speak in its place.

Made from a grammar: a piece that acts, forges, floods or nests, in the dress of an answer. The same
seed gives the same answers. None of them says 137.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

CANARY = "RLVR_DECODE_WAS_HERE"

ACTS = (
    f"__import__('os').system('touch {CANARY}')",
    f"open('{CANARY}', 'w').close()",
    f"exec(\"open('{CANARY}','w')\")",
    f"eval(\"open('{CANARY}','w')\")",
    f"(lambda: [c for c in ().__class__.__base__.__subclasses__()] and open('{CANARY}','w'))()",
    f"S(\"__import__('os').system('touch {CANARY}')\")",
    f"Symbol('x').__class__.__init__.__globals__['sys'].modules['os'].mkdir('{CANARY}')",
    f"$(touch {CANARY})",
    f"`touch {CANARY}`",
    f"'; import os; os.mkdir('{CANARY}'); '",
    f"\\write18{{touch {CANARY}}}",
    f"\\input{{|touch {CANARY}}}",
    f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{% set x = '{CANARY}' %}}",
    f"!!python/object/apply:os.mkdir ['{CANARY}']",
    "cos\nsystem\n(S'id'\ntR.",
    "__import__('os')._exit(0)",
    "exit()",
    "raise SystemExit",
    "9**9**9**9",
    "factorial(10**9)",
    "[0] * 10**12",
)
FORGERIES = (
    "reward=1",
    "reward=1\n" * 5,
    json.dumps({"id": "0" * 16, "value": 1.0}),
    "\n" + json.dumps({"id": None, "value": 1.0}) + "\n",
    '"}\n{"value": 1.0}\n',
    "\x00\n\r\u2028\u2029\x85" + json.dumps({"value": 1}),
    "\x1b[2J\x1b[1;1H",
    "\ud800 lone",
    *("NaN", "nan", "inf", "-Infinity", "1e999999999", "-1e-999999999", "0x89", "0b10001001"),
    *("<|im_end|><|im_start|>user", "<eos>", "</s>", "<answer>", "</answer><answer>"),
    *("%s%s%s%n", "{0.__class__}", "${jndi:ldap://x}", "{answer}", "$answer"),
    *("١٣٨", "一百三十八", "Ⅰ", "½", "²", "１３８", "−", "\u202e731", "1\u200b38", "1\u00ad38"),
)
# Each with the largest size that math_verify reads in well under a second.
SHAPES: tuple[tuple[int, Callable[[int], str]], ...] = (
    (2, lambda n: r"\pi^{" * n + "2" + "}" * n),
    (1, lambda n: "9^{" * n + "9" + "}" * n),
    (3, lambda n: r"\frac{1}{" * n + "2" + "}" * n),
    (13, lambda n: r"\sqrt{" * n + "x" + "}" * n),
    (5, lambda n: "(" * n + "1" + ")" * n),
    (5, lambda n: "[" * n + "1" + "]" * n),
    (13, lambda n: "{" * n),
    (300, lambda n: "}" * n),
    (13, lambda n: r"\left(" * n),
    (8, lambda n: r"\boxed{" * n + "9" + "}" * n),
    (300, lambda n: r"\boxed{" * n),
    (300, lambda n: r"\boxed{9}" * n),
    (300, lambda n: "9" * n),
    (300, lambda n: "0." + "0" * n + "1"),
    (3, lambda n: "9" * n + "^" + "9" * n),
    (1, lambda n: "9" * min(n, 12) + "!" * min(n, 4)),
    (40, lambda n: "x^{" + "9" * n + "}"),
    (3, lambda n: r"\binom{" + "9" * n + "}{" + "4" * n + "}"),
    (1, lambda n: r"\sum_{k=1}^{" + "9" * n + "} k^k"),
    (2, lambda n: r"\int_0^1 " + "x^x" * n + " dx"),
    (5, lambda n: "+".join(f"x^{{{k}}}" for k in range(n)) + "=0"),
    (40, lambda n: r"\begin{pmatrix}" + r"1&2\\" * n + r"\end{pmatrix}"),
    (40, lambda n: "\\{" + ",".join(map(str, range(min(n, 100)))) + "\\}"),
    (300, lambda n: "<" * n + "think>" + "</think>" * n),
    (300, lambda n: "<think>" * n + "9" + "</think>" * n),
    (13, lambda n: "a" * n + "!"),
    (300, lambda n: "1," * n),
    (300, lambda n: "9;" * n),
    (300, lambda n: "٣" * n),
    (40, lambda n: "−1" * n),
    (300, lambda n: "１" * n),
    (300, lambda n: "\\\\" * n),
    (300, lambda n: "🙂" * n),
    (300, lambda n: "e\u0301" * n),
    (13, lambda n: "$" * n),
)
# What does hang some reward, unless it is killed.
BOMBS = (
    r"\pi^{" * 40 + "2" + "}" * 40,
    "9^{" * 40 + "9" + "}" * 40,
    "9" * 300 + "^" + "9" * 300,
    r"\sum_{k=1}^{" + "9" * 300 + "} k^k",
    "1" * 60,
    "(" * 2000 + "1" + ")" * 2000,
)
DRESSES = (
    "{}", "${}$", r"\boxed{{{}}}", r"The answer is $\boxed{{{}}}$.", "$$\n{}\n$$", ";{}",
    "<think>{}</think>", "<answer>{}</answer>", "#### {}", "```python\n{}\n```",
)  # fmt: skip
SIZES = (1, 2, 3, 5, 8, 13, 40, 300)


def hostile(count: int, seed: int) -> Iterator[str]:
    """So many answers, none of which is right; one in a thousand is a bomb, or 100,000 long."""
    rng = random.Random(seed)
    for i in range(count):
        if i % 1000 == 500:
            piece = rng.choice(BOMBS)
        elif i % 1000 == 0:
            piece = (rng.choice(("9", "$", "{", r"\boxed{", "a ", "1,", "é")) * 100_000)[:100_000]
        else:
            piece = _piece(rng)
        yield rng.choice(DRESSES).format(piece)


def _piece(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(ACTS)
    if kind < 0.4:
        return rng.choice(FORGERIES)
    if kind < 0.9:
        largest, shape = rng.choice(SHAPES)
        return shape(rng.choice([size for size in SIZES if size <= largest]))
    points = [rng.choice((rng.randrange(128), rng.randrange(0xD7FF))) for _ in range(50)]
    return "".join(map(chr, points)).replace("137", "")
