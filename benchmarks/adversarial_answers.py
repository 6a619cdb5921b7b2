"""Ten thousand answers written to hang, enter or fool a reward, against every reward there is.

    python benchmarks/adversarial_answers.py [--answers 10000]
        writes benchmarks/results/adversarial_answers.jsonl and .md, reward by reward

For each reward: no answer is rewarded that is not right, none leaves a file or a process behind,
right answers between hostile ones are still right, and a second run in another order, with other
neighbours, gives every answer the same verdict. Answers that the judge has to kill are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from hostile_answers import hostile

from rlvr_decode.training.rewards.judging import Judge, read_rewards
from rlvr_decode.training.tasks.reasoning_gym import ReasoningGym

RESULTS = Path(__file__).parent / "results" / "adversarial_answers.md"
ROWS = RESULTS.with_suffix(".jsonl")
RIGHT = "137"
TIME_OUT = 2.0
WORKER = "rlvr_decode.training.rewards.worker"
# Reward by name: what a recipe says, and a right answer in its form.
REWARDS: dict[str, tuple[Any, str]] = {
    "exact": ("exact", "137"),
    "after_semicolon": ("after_semicolon", "so;137"),
    "last_number": ("last_number", "it is 137"),
    "regex": ({"name": "regex", "pattern": "<think>.*</think>[0-9]+7"}, "<think>x</think>137"),
    "regex that backtracks": ({"name": "regex", "pattern": "(1|1?1)*7|137"}, "137"),
    "module:function": ("rlvr_decode.training.rewards.verifiable:last_number", "137"),
    "math_verify": ("math_verify", r"\boxed{137}"),
    "weighted sum": (
        [
            {"name": "math_verify", "weight": 0.5},
            {"name": "last_number", "weight": 0.25},
            {"name": "regex", "weight": 0.25, "pattern": r".*\d+"},
        ],
        "137",
    ),
}
GYM = ("chain_sum", "gcd", "prime_factorization")

COLUMNS = (
    *("reward", "answers", "full marks", "other verdict in the other order"),
    *("right ones misjudged", "killed for time or memory", "refused by the guard", "seconds"),
)

# Verdicts on many responses to one question.
Verdicts = Callable[[list[str]], list[float | None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What one reward did with the corpus."""

    name: str
    answers: int
    rewarded: int
    differing: int
    wrong_right: int
    killed: int
    refused: int
    seconds: float

    @property
    def good(self) -> bool:
        return not (self.differing or self.wrong_right)


def campaign(count: int, seed: int, names: list[str], workers: int) -> Iterator[Found]:
    """Every reward against the same answers."""
    answers = list(hostile(count, seed))
    for name in names:
        if name in REWARDS:
            said, right = REWARDS[name]
            judge = Judge(read_rewards(said), workers=workers, time_out=TIME_OUT)
            yield attacked(name, answers, right, of_judge(judge), judge.take_counts)
            judge.close()
        else:
            task = ReasoningGym(name, workers=workers, time_out=TIME_OUT)
            prompt = task.prompt(0, seed=0, split="train")

            def ask(many: list[str], task: Any = task, prompt: Any = prompt) -> list[float | None]:
                verdicts: list[float | None] = task.judge([prompt] * len(many), many)
                return verdicts

            yield attacked(f"reasoning_gym:{name}", answers, prompt.answer, ask, task.take_counts)


def of_judge(judge: Judge) -> Verdicts:
    def ask(many: list[str]) -> list[float | None]:
        return judge.judge(many, [RIGHT] * len(many))

    return ask


def attacked(
    name: str,
    answers: list[str],
    right: str,
    ask: Verdicts,
    counts: Callable[[], dict[str, float]],
) -> Found:
    """The corpus in two orders, right answers strewn in, compared answer by answer."""
    started = time.monotonic()
    [full] = ask([right])
    rng, by_answer = random.Random(0), {}
    wrong_right = differing = 0
    counts()
    killed = refused = 0.0
    for turn in range(2):
        order = answers if turn == 0 else rng.sample(answers, len(answers))
        strewn = [right]
        for at in range(0, len(order), 20):
            strewn += [*order[at : at + 20], right]
        verdicts = ask(strewn)
        for text, verdict in zip(strewn, verdicts, strict=True):
            if text == right:
                wrong_right += verdict != full
            else:
                differing += by_answer.setdefault(text, verdict) != verdict
        told = counts()
        if turn == 0:
            killed = told["reward_timeouts"] + told["reward_crashes"]
            refused = told["reward_errors"]
    rewarded = sum(verdict == full for verdict in by_answer.values())
    return Found(
        name=name,
        answers=len(answers),
        rewarded=rewarded,
        differing=differing,
        wrong_right=wrong_right,
        killed=int(killed),
        refused=int(refused),
        seconds=time.monotonic() - started,
    )


def traces(directory: Path) -> list[str]:
    """Files that appeared where the rewards ran, and processes that were started beside workers."""
    files = [str(path.relative_to(directory)) for path in directory.rglob("*")]
    started = psutil.Process().children(recursive=True)
    lines = [" ".join(each.cmdline()) for each in started]
    return files + [line for line in lines if WORKER not in line]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[*GYM, *REWARDS], help="names of rewards")
    parser.add_argument("--write", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        good = True
        for each in campaign(options.answers, options.seed, options.only, options.workers):
            left = traces(Path(directory))
            print(each, "left behind:", left, flush=True)
            good = good and each.good and not left
            if options.write and good:
                with ROWS.open("a") as file:
                    file.write(json.dumps(asdict(each)) + "\n")
                RESULTS.write_text(report())
        os.chdir("/")
    return 0 if good else 1


def report() -> str:
    """The newest row of every reward; only good ones are kept."""
    rows = [Found(**json.loads(line)) for line in ROWS.read_text().splitlines()]
    found = {row.name: row for row in rows}.values()
    lines = [
        "# Answers written to hang, enter or fool a reward\n",
        "`benchmarks/adversarial_answers.py`: every answer judged twice, in two orders, with a "
        f"right answer after every twentieth; {TIME_OUT:g} s for an answer, {platform.machine()}. "
        "Nothing was left behind: no file, no process.\n",
        f"| {' | '.join(COLUMNS)} |",
        "|---|" + "---:|" * (len(COLUMNS) - 1),
    ]
    for each in found:
        counts = (each.answers, each.rewarded, each.differing, each.wrong_right, each.killed)
        cells = [each.name, *(f"{count:,}" for count in (*counts, each.refused))]
        lines.append(f"| {' | '.join(cells)} | {each.seconds:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
