"""What the stage monitor and MRPO's ranks cost per training step, on and off in turn in one run.

    python benchmarks/monitor.py [--rounds 15]

The bundled base on the tiny task, as its recipe trains it but at learning rate 0, so that all
steps are alike. Two figures each, in CPU time of one thread: the median of the paired differences
between steps with and without, which is what a run pays but is as noisy as steps are; and the
share of a step that is spent inside the monitor's and the ranks' own code, which is not.
Writes benchmarks/results/monitor.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from rlvr_decode.pair import Pair
from rlvr_decode.training import step as step_module
from rlvr_decode.training.config import Objective, load
from rlvr_decode.training.rank.ranks import ranked_rewards
from rlvr_decode.training.setup import make_objective
from rlvr_decode.training.step import Trainer
from rlvr_decode.training.tasks.data import make_task

RESULTS = Path(__file__).parent / "results"
SETTINGS: dict[str, dict[str, Any]] = {
    "off": {},
    "[stages]": {"stages": {}},
    "[rank], MRPO": {"rank": {}, "objective": Objective(name="mrpo")},
    "VERL": {"objective": Objective(name="verl"), "verl": {}},
}


@dataclass(slots=True)
class Clock:
    """CPU seconds of each step of one mode, and those spent in what the mode adds."""

    steps: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added to the step's."""

        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            result = function(*arguments, **options)
            self.inside[-1] += time.process_time() - start
            return result

        return call


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    clocks = {name: Clock() for name in SETTINGS}
    trainers = {name: make_trainer(settings) for name, settings in SETTINGS.items()}
    ranked = ranked_rewards
    for number in range(args.rounds + 1):
        for name, trainer in trainers.items():
            clock = clocks[name]
            clock.inside.append(0.0)
            vars(step_module)["ranked_rewards"] = clock.timed(ranked)
            start = time.process_time()
            trainer.step(number + 1)
            clock.steps.append(time.process_time() - start)
            if number == 0:
                add_timers(trainer, clock)
    text = report(clocks, args.rounds)
    print(text)
    (RESULTS / "monitor.md").write_text(text, encoding="utf-8")


def add_timers(trainer: Trainer, clock: Clock) -> None:
    """Time what the loop calls on a trainer's parts; the first round warms up without."""
    if trainer.staging.monitor is not None:
        vars(trainer.staging)["observe"] = clock.timed(trainer.staging.observe)
    if trainer.trends is not None:
        vars(trainer.trends)["bonus"] = clock.timed(trainer.trends.bonus)


def make_trainer(settings: dict[str, Any]) -> Trainer:
    config = load("tiny", ["kl_to_base=false", "optim.lr=0.0"])
    base = Pair.open("tiny").base.fetch()
    config = replace(config, base=str(base), pretrain=None, **settings)
    task = make_task(config.task.name, config.task.options)
    return Trainer(config, task, make_objective(config), base)


def report(clocks: dict[str, Clock], rounds: int) -> str:
    """A Markdown table, without the first round."""
    plain = clocks["off"].steps[1:]
    lines = [
        "# Cost of the stage monitor and of ranks per step",
        "",
        f"`benchmarks/monitor.py --rounds {rounds}`: tiny task, 48 prompts × 12 responses, "
        f"fp32, CPU seconds of one thread, {platform.machine()}, torch {torch.__version__}.",
        "",
        "| | CPU seconds per step | difference to off, paired | own code, share of a step |",
        "|---|---|---|---|",
    ]
    for name, clock in clocks.items():
        steps, inside = clock.steps[1:], clock.inside[1:]
        paired = statistics.median(s / p - 1 for s, p in zip(steps, plain, strict=True))
        own = statistics.median(i / (s - i) for i, s in zip(inside, steps, strict=True))
        lines.append(f"| {name} | {statistics.median(steps):.3f} | {paired:+.1%} | {own:.2%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
