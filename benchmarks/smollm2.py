"""SmolLM2-135M before and after RLVR, and along the direction between them.

    rlvr-decode train smollm2 && rlvr-decode train smollm2-lpo …      # the runs that are compared
    python benchmarks/smollm2.py smollm2 runs/smollm2-lpo … --out study

The first pair is the one that is swept; of the others, rlvr alone is measured. Every row is kept
as it comes, so a stopped study goes on. PRIMARY was fixed before anything was measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from smollm2_table import Findings, write_report
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlvr_decode.evaluate.arms import Arm, rivals
from rlvr_decode.evaluate.journal import Journal
from rlvr_decode.evaluate.measure import Measurement
from rlvr_decode.evaluate.questions import choose_questions, digest
from rlvr_decode.evaluate.statistics import bootstrap_interval
from rlvr_decode.evaluate.summary import Summary, summaries
from rlvr_decode.evaluate.variants import variant_of
from rlvr_decode.evaluate.with_transformers import open_models
from rlvr_decode.evaluate.with_vllm import VllmSampler
from rlvr_decode.pair import Pair
from rlvr_decode.params import Extrapolation
from rlvr_decode.training.config import load
from rlvr_decode.training.tasks.data import make_task
from rlvr_decode.training.verbs.tasks import Verdicts

Found = dict[Arm, Summary]

ENGINE: dict[str, Any] = {
    "max_model_len": 512,
    "max_num_seqs": 64,
    "enforce_eager": True,
    "block_size": 32,
}
PRIMARY = Extrapolation(strength=1.0, plausibility=0.05)

BASE, RLVR = Arm(extrapolation=Extrapolation(strength=-1.0)), Arm()
ALONE = (RLVR, Arm(temperature=0.0))
STRENGTHS = (-0.5, 0.5, 1.0, 2.0, 3.0)
GATES: tuple[dict[str, Any], ...] = (
    {"gate": "delta", "threshold": -0.3, "primary": "base"},
    {"gate": "delta", "threshold": -0.3},
    {"gate": "kl", "threshold": 0.05},
    {"gate": "entropy", "threshold": 0.5},
    {"gate": "random", "threshold": 0.1},
)

# Away from what was trained on. One-digit products are the nearest neighbour.
QUESTION = "{prompt}\nAnswer with only the number."
ELSEWHERE = {
    "products": {"min_digits": 1, "max_digits": 2},
    "gcd": {"max_value": 100},
    "letter_counting": {"min_words": 2, "max_words": 4},
}
TEXTS = ("LICENSE", "CONTRIBUTING.md")
WINDOW = 256


def arms_of_the_sweep() -> list[Arm]:
    """Everything asked of the first pair, at temperature 1 unless it says so."""
    primary = Arm(extrapolation=PRIMARY)
    swept = [Extrapolation(strength=strength) for strength in STRENGTHS]
    swept += [
        Extrapolation(strength=strength, plausibility=PRIMARY.plausibility)
        for strength in STRENGTHS
        if strength > 0
    ]
    swept += [replace(PRIMARY, **gate) for gate in GATES]
    arms = [RLVR, BASE, primary, primary.masked_rlvr]
    arms += [Arm(temperature=temperature) for temperature in (0.7, 0.3, 0.0)]
    arms += [replace(primary, temperature=temperature) for temperature in (0.3, 0.0)]
    arms += [replace(BASE, temperature=0.0)]
    arms += [Arm(extrapolation=each) for each in swept]
    return list(dict.fromkeys(arms))


class Kept(VllmSampler):
    """An engine that outlives a measurement."""

    def close(self) -> None:
        """Leave it to the next one."""


class Engine:
    """A pair's own engine, started when it is first asked and kept for every measurement."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._sampler: Kept | None = None

    def opener(self, max_tokens: int) -> Callable[[Arm], VllmSampler]:
        """What opens the sampler of any arm of the pair itself, for responses so long."""

        def opened(arm: Arm) -> VllmSampler:
            if self._sampler is None:
                self._sampler = Kept(self.pair, max_tokens=max_tokens, **ENGINE)
            self._sampler.max_tokens = max_tokens
            return self._sampler

        return opened

    def close(self) -> None:
        """Give back what it holds."""
        if self._sampler is not None:
            VllmSampler.close(self._sampler)


Task = tuple[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What is asked of every pair: its rows are in the directory `out`.

    task       the recipe's, with its limit of tokens.
    prompts    of that task, and `elsewhere` of each other one.
    """

    out: Path
    task: Task
    limit: int
    prompts: int
    elsewhere: int
    samples: int
    seed: int

    def ask(
        self,
        name: str,
        pair: Pair,
        arms: Sequence[Arm],
        open_sampler: Callable[[Arm], VllmSampler],
        *,
        task: Task | None = None,
        tokens: int | None = None,
    ) -> Found:
        """Arms on different held-out prompts of a task, by default the study's own."""
        name_and_options = task or self.task
        prompts = self.elsewhere if task else self.prompts
        made = make_task(*name_and_options)
        stream = (made.prompt(i, seed=self.seed, split="held_out") for i in count())
        questions, _ = choose_questions(stream, prompts=prompts, confirm=0)
        header = {
            "pair": pair.name,
            "task": name_and_options,
            "prompts": prompts,
            "samples": self.samples,
            "seed": self.seed,
            "max_tokens": tokens or self.limit,
        }
        journal = Journal.open(
            self.out / f"{pair.name}-{name}.jsonl", json.loads(json.dumps(header))
        )
        Measurement(
            open_sampler=open_sampler,
            judge=Verdicts(made),
            samples=self.samples,
            seed=self.seed,
            piece=512,
        ).run(arms, questions, journal)
        names = [digest(question) for question in questions]
        return summaries(journal, arms, names, ks=(1,), interval=bootstrap_interval)

    def away(self, pair: Pair, engine: Engine, arms: Sequence[Arm]) -> dict[str, Found]:
        """By other task."""
        found = {}
        for name, settings in ELSEWHERE.items():
            options = {"chat": True, "number": True, "template": QUESTION, "settings": settings}
            task = (f"reasoning_gym:{name}", options)
            found[name] = self.ask(name, pair, arms, engine.opener(32), task=task, tokens=32)
        return found

    def moved(self, pair: Pair) -> Found:
        """With the weights moved instead, each on an engine of its own."""
        arms = rivals(temperatures=(), top_p=1.0, weight_strengths=(0.5, 1.0), grid=[RLVR])
        with tempfile.TemporaryDirectory() as scratch:
            return self.ask(
                "weights",
                pair,
                arms,
                lambda arm: VllmSampler(
                    variant_of(pair, arm, Path(scratch) / str(arm.weight_strength)),
                    max_tokens=self.limit,
                    **ENGINE,
                ),
            )


@torch.no_grad()
def losses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> list[float]:
    """Mean −log p of the tokens of each window of a text, in nats."""
    ids = tokenizer.encode(text)
    starts = range(0, len(ids) - WINDOW, WINDOW)
    windows = torch.tensor([ids[start : start + WINDOW + 1] for start in starts])
    found = []
    for window in windows:
        logp_TV = model(window[None, :-1]).logits[0].float().log_softmax(-1)
        found.append(-logp_TV.gather(-1, window[1:, None]).mean().item())
    return found


def read_texts(pairs: Sequence[Pair]) -> dict[str, dict[str, list[float]]]:
    """How well each model predicts texts that come with this project: by text, then by model."""
    found: dict[str, dict[str, list[float]]] = {text: {} for text in TEXTS}
    root = Path(__file__).parent.parent
    for pair in pairs:
        models = open_models(pair)
        named = {pair.name: models.rlvr} | ({"base": models.base} if pair is pairs[0] else {})
        for text in TEXTS:
            words = (root / text).read_text(encoding="utf-8")
            for name, model in named.items():
                found[text][name] = losses(model, models.tokenizer, words)
    return found


def main() -> None:
    """Measure what is missing, and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs", nargs="+", help="names or directories; the first one is swept")
    parser.add_argument("--recipe", default="smollm2", help="whose task is asked")
    parser.add_argument("--out", type=Path, default=Path("study"))
    parser.add_argument("--report", type=Path, default=Path(__file__).parent / "results/smollm2")
    parser.add_argument("--prompts", type=int, default=320)
    parser.add_argument("--elsewhere", type=int, default=150, help="prompts of each other task")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    recipe = load(args.recipe)
    study = Study(
        out=args.out,
        task=(recipe.task.name, recipe.task.options),
        limit=recipe.rollout.max_new_tokens,
        prompts=args.prompts,
        elsewhere=args.elsewhere,
        samples=args.samples,
        seed=args.seed,
    )
    pairs = [Pair.open(each) for each in args.pairs]
    write_report(args.report, measure(study, pairs))


def measure(study: Study, pairs: Sequence[Pair]) -> Findings:
    """All of it, one pair after the other."""
    swept, *others = pairs
    primary = Arm(extrapolation=PRIMARY)
    with closing(Engine(swept)) as engine:
        sweep = study.ask("sweep", swept, arms_of_the_sweep(), engine.opener(study.limit))
        # With room for a sentence before the number, which training does not give.
        room = study.ask("room", swept, [RLVR, BASE], engine.opener(64), tokens=64)
        away = {swept.name: study.away(swept, engine, [RLVR, BASE, primary])}
    adapters = {}
    for pair in others:
        with closing(Engine(pair)) as engine:
            open_sampler = engine.opener(study.limit)
            adapters[pair.name] = study.ask("alone", pair, ALONE, open_sampler)
            away[pair.name] = study.away(pair, engine, [RLVR])
    return Findings(
        swept=swept.name,
        sweep=sweep | study.moved(swept),
        room=room,
        adapters=adapters,
        elsewhere={(task, name): away[name][task] for task in ELSEWHERE for name in away},
        texts=read_texts(pairs),
        recipes={pair.name: dict(pair.provenance) for pair in pairs},
        primary=primary,
        samples=study.samples,
        tokens=study.limit,
    )


if __name__ == "__main__":
    main()
