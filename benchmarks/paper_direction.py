"""The protocol of arXiv 2603.22117, §4, for anyone who has the weights of one of its pairs.

    rlvr-decode pair make Qwen/Qwen2.5-32B BytedTsinghua-SIA/DAPO-Qwen-32B -o dapo
    python benchmarks/paper_direction.py dapo --published dapo --data aime24.jsonl

AIME-style problems, one JSON object a line with "problem" and "answer"; the chat template, an
instruction to box the answer, 32 samples at T = 1 and top-p 0.7, at most 20 000 tokens; graded by
Math-Verify. Four arms: base, rlvr, selective replacement (a token of base with Δ ≤ threshold is
drawn again from rlvr) and selective extrapolation (drawn again from the extrapolated distribution).

Differences are paired by problem, with 95 % t intervals over problems: thirty problems carry gains
of one to three points only just, which the paper's table does not show. A run that is stopped goes
on where it was. Prints Markdown, and writes it beside the rows, to --out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rlvr_decode.evaluate.arms import Arm
from rlvr_decode.evaluate.engines import Engines, add_arguments, engine_of
from rlvr_decode.evaluate.journal import Journal
from rlvr_decode.evaluate.measure import Measurement
from rlvr_decode.evaluate.questions import choose_questions, digest
from rlvr_decode.evaluate.report import table
from rlvr_decode.evaluate.statistics import Interval
from rlvr_decode.evaluate.summary import Summary, gain, summaries
from rlvr_decode.pair import Pair
from rlvr_decode.params import Extrapolation
from rlvr_decode.training.tasks.data import Table
from rlvr_decode.training.verbs.tasks import Verdicts

INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."


class Published(NamedTuple):
    """A pair of the paper: its settings, and Avg@32 on AIME 2024 of three arms, in percent."""

    base: str
    rlvr: str
    strength: float
    threshold: float
    avg_rlvr: float
    avg_replace: float
    avg_extrapolate: float


PUBLISHED = {
    "orz": Published("Qwen2.5-32B", "Open-Reasoner-Zero-32B", 0.1, -0.4, 46.15, 43.33, 47.50),
    "dapo": Published("Qwen2.5-32B", "DAPO-Qwen-32B", 0.05, -0.3, 52.50, 51.67, 55.42),
    "unireason": Published(
        "Qwen3-14B-Base", "UniReason-Qwen3-14B-RL", 0.1, -0.35, 54.58, 54.06, 55.83
    ),
}


def arms(published: Published, *, temperature: float, top_p: float) -> dict[str, Arm]:
    """The four arms, by what the paper calls them."""
    replaced = Extrapolation(gate="delta", threshold=published.threshold, primary="base")
    settings = {
        "base": Extrapolation(strength=-1.0),
        "rlvr": Extrapolation(),
        "selective replacement": replaced,
        "selective extrapolation": replace(replaced, strength=published.strength),
    }
    return {
        name: Arm(extrapolation=setting, temperature=temperature, top_p=top_p)
        for name, setting in settings.items()
    }


def run(args: argparse.Namespace) -> str:
    """Measure, going on where a stopped run was; returns the Markdown."""
    pair, published = Pair.open(args.pair), PUBLISHED[args.published]
    task = Table(
        path=args.data,
        reward=args.reward,
        prompt_column=args.prompt_column,
        answer_column=args.answer_column,
        template="{prompt}" + args.instruction,
    )
    prompts = (task.prompt(index, seed=0, split="train") for index in range(task.rows))
    asked = (replace(each, messages=(("user", each.text),)) for each in prompts)
    problems, _ = choose_questions(asked, prompts=None, confirm=0)
    named = arms(published, temperature=args.temperature, top_p=args.top_p)
    header = {
        "pair": pair.name,
        "published": args.published,
        "engine": engine_of(args, pair),
        "samples": args.samples,
        "max_tokens": args.max_tokens,
        "seed": args.seed,
    }
    journal = Journal.open(args.out / "results.jsonl", header)
    with tempfile.TemporaryDirectory() as scratch:
        Measurement(
            open_sampler=Engines(args, pair, Path(scratch)).open,
            judge=Verdicts(task),
            samples=args.samples,
            seed=args.seed,
            piece=args.batch,
            keep_texts=args.keep_texts,
        ).run(list(named.values()), problems, journal)
    names = [digest(problem) for problem in problems]
    found = summaries(journal, list(named.values()), names, ks=(1, min(16, args.samples)))
    text = markdown(args, {name: found[arm] for name, arm in named.items()}, published)
    (args.out / "report.md").write_text(text, encoding="utf-8")
    return text


def markdown(args: argparse.Namespace, found: dict[str, Summary], published: Published) -> str:
    printed = {
        "rlvr": published.avg_rlvr,
        "selective replacement": published.avg_replace,
        "selective extrapolation": published.avg_extrapolate,
    }
    k = max(found["rlvr"].pass_at)
    rows = []
    for name, summary in found.items():
        over = "–" if name == "rlvr" else _points(gain(summary, found["rlvr"]))
        rows.append(
            [
                name,
                f"{100 * summary.accuracy.mean:.2f}",
                over,
                f"{printed[name]:.2f}" if name in printed else "–",
                f"{100 * summary.pass_at[k]:.1f}",
                f"{summary.length:.0f}",
                f"{100 * summary.finished:.0f} %",
                "–" if summary.rate is None else f"{100 * summary.rate:.2f} %",
            ]
        )
    head = ["arm", f"Avg@{args.samples} %", "over rlvr, paired, 95 %", "the paper's Avg@32 %"]
    head += [f"Pass@{k} %", "tokens", "ended", "drawn again"]
    problems = found["rlvr"].accuracy.prompts
    return (
        f"# {args.pair}, by the protocol of {published.rlvr}\n\n"
        f"{problems} problems × {args.samples} samples, T {args.temperature:g}, top-p "
        f"{args.top_p:g}, at most {args.max_tokens} tokens; threshold {published.threshold:g}, "
        f"strength {published.strength:g}.\n\n{table(head, rows)}\n"
    )


def _points(interval: Interval) -> str:
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pair", help="a name, a directory, or a pair.json")
    parser.add_argument("--published", choices=PUBLISHED, required=True, help="whose settings")
    parser.add_argument("--data", required=True, help="JSONL of problems and answers")
    parser.add_argument("--prompt-column", default="problem")
    parser.add_argument("--answer-column", default="answer")
    parser.add_argument("--instruction", default=INSTRUCTION, help="asked after each problem")
    parser.add_argument("--reward", default="math_verify")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=0.7)
    parser.add_argument("--max-tokens", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-texts", action="store_true", help="write the responses too")
    parser.add_argument("--out", type=Path, default=Path("paper-direction"))
    add_arguments(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    print(run(parse()))
