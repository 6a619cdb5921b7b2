"""Requests that come and go: continuous batching of plain and extrapolated traffic, simulated.

Time passes in steps of the cost model. A step gives every running request a token and reads the
prompts of those that were admitted; a request is admitted as soon as its keys and values fit. Base
is left out of a step in which no running request uses it, as the engine does it. Requests arrive as
a Poisson process; prompts have one length, answers exponentially distributed ones.
"""

from __future__ import annotations

import random
import statistics
from collections import deque
from dataclasses import dataclass, field

from cost_model import VARIANTS, Device, Shape, Variant, parts, requests_that_fit


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What arrives.

    rate            requests a second.
    share           of them that are extrapolated, in [0, 1].
    prompt, answer  tokens, on average of an answer.
    """

    rate: float
    share: float
    prompt: int = 512
    answer: float = 512
    requests: int = 500
    seed: int = 0


@dataclass(kw_only=True, slots=True)
class Request:
    arrived: float
    extrapolated: bool
    left: int
    context: int
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = self.left


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """Tokens a second, milliseconds a token of an answer with its waiting, and steps so spared."""

    tokens_per_second: float
    median_ms: float
    p95_ms: float
    without_base: float


def arrivals(load: Load) -> deque[Request]:
    draw = random.Random(load.seed)
    waiting: deque[Request] = deque()
    now = 0.0
    for _ in range(load.requests):
        now += draw.expovariate(load.rate)
        extrapolated = draw.random() < load.share
        left = max(1, round(draw.expovariate(1 / load.answer)))
        waiting.append(
            Request(arrived=now, extrapolated=extrapolated, left=left, context=load.prompt)
        )
    return waiting


def simulate(
    shape: Shape, variant: Variant, device: Device, load: Load, *, gpus: int = 1, most: int = 256
) -> Served:
    """Serve a load to its end; at most `most` requests run at once."""
    waiting, running = arrivals(load), list[Request]()
    room = requests_that_fit(shape, variant, device, context=1, gpus=gpus)
    now, tokens, steps, plain_steps = 0.0, 0, 0, 0
    paces: list[float] = []
    while waiting or running:
        if not running:
            now = max(now, waiting[0].arrived)
        prompts = load.prompt * admit(waiting, running, now, room, most)
        plain = not any(each.extrapolated for each in running)
        chosen = VARIANTS["single"] if plain else variant
        now += step_seconds(shape, chosen, device, running, prompts, gpus)
        steps, plain_steps, tokens = steps + 1, plain_steps + plain, tokens + len(running)
        for each in running:
            each.left, each.context = each.left - 1, each.context + 1
        done = [each for each in running if not each.left]
        if done:
            paces += [1e3 * (now - each.arrived) / each.length for each in done]
            running = [each for each in running if each.left]
    paces.sort()
    return Served(
        tokens_per_second=tokens / now,
        median_ms=statistics.median(paces),
        p95_ms=paces[int(0.95 * len(paces))],
        without_base=plain_steps / steps,
    )


def admit(waiting: deque[Request], running: list[Request], now: float, room: int, most: int) -> int:
    """Move those that have arrived and fit, by all that they will hold, to `running`; how many."""
    before = len(running)
    held = 0
    if waiting and waiting[0].arrived <= now:
        held = sum(each.context + each.left for each in running)
    while waiting and waiting[0].arrived <= now and len(running) < most:
        held += waiting[0].context + waiting[0].left
        if held > room and running:
            break
        running.append(waiting.popleft())
    return len(running) - before


def step_seconds(
    shape: Shape,
    variant: Variant,
    device: Device,
    running: list[Request],
    prompts: int,
    gpus: int,
) -> float:
    """One step; prompts and single tokens share its products."""
    step = parts(
        shape,
        variant,
        tokens=len(running) + prompts,
        logits=len(running),
        read=sum(each.context for each in running),
        gpus=gpus,
    )
    return device.host + sum(part.seconds(device) for part in step)
