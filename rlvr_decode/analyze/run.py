"""An analysis from its arguments to its findings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr_decode.analyze import differences, replacement, top_tokens
from rlvr_decode.analyze.geometry import Summary as Geometry
from rlvr_decode.analyze.geometry import geometry_report
from rlvr_decode.analyze.tokens import Tokens, read_tokens
from rlvr_decode.charts import Chart
from rlvr_decode.evaluate.arms import Arm
from rlvr_decode.evaluate.decode import Recipe, decode
from rlvr_decode.evaluate.journal import Journal
from rlvr_decode.evaluate.measure import Measurement
from rlvr_decode.evaluate.questions import choose_questions, digest
from rlvr_decode.evaluate.run import Asked
from rlvr_decode.evaluate.sampling import Question, rendered
from rlvr_decode.evaluate.statistics import Interval
from rlvr_decode.evaluate.summary import Summary, summaries
from rlvr_decode.evaluate.with_transformers import Models, TransformersSampler, open_models
from rlvr_decode.pair import Pair
from rlvr_decode.params import Extrapolation
from rlvr_decode.sampling import Sampling

AUTHORS = {"base": Extrapolation(strength=-1.0), "rlvr": Extrapolation()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """Everything that was found; what is keyed by author is of base's and of rlvr's responses."""

    pair: str
    task: str
    about: str
    accuracies: dict[str, Interval]
    tails: dict[str, dict[str, Any]]
    separations: dict[str, differences.Separation]
    histograms: dict[str, dict[str, list[float]]]
    histogram_charts: list[Chart]
    by_delta: list[dict[str, float]]
    points: list[replacement.Point]
    replacement_chart: Chart | None
    raised: list[top_tokens.Place]
    lowered: list[top_tokens.Place]
    kinds: list[top_tokens.Kind]
    shown: list[tuple[str, str, list[tuple[str, float]]]]
    geometry: Geometry | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What one model wrote, and every token of it as both see it."""

    words: top_tokens.Words
    tokens: Tokens


def analyze(args: argparse.Namespace, pair: Pair, asked: Asked) -> Analysis:
    """Measure what the arguments ask for; a replacement sweep that stopped goes on.

    Raises ValueError for what cannot be measured.
    """
    prompts = args.prompts if args.prompts is not None or not asked.endless else 200
    questions, _ = choose_questions(asked.questions, prompts=prompts, confirm=0)
    models = open_models(pair)
    written = {author: _write(models, questions, author, args) for author in AUTHORS}
    base, rlvr = (written[author].tokens for author in ("base", "rlvr"))
    swept, found = _sweep(args, pair, asked, models, questions, base)
    points = replacement.points(swept, found)
    plain = {author: found[_author_arm(author, args)] for author in AUTHORS}
    histograms = differences.histograms({"base": base, "rlvr": rlvr})
    return Analysis(
        pair=pair.name,
        task=asked.name,
        about=f"{len(questions)} prompts; responses drawn at temperature {args.temperature:g}, at "
        f"most {args.max_tokens} tokens.",
        accuracies={author: summary.accuracy for author, summary in plain.items()},
        tails={author: differences.tails(each.tokens) for author, each in written.items()},
        separations=differences.separations(base, rlvr),
        histograms=histograms,
        histogram_charts=differences.histogram_charts(histograms),
        by_delta=differences.by_delta([base, rlvr]),
        points=points,
        replacement_chart=replacement.chart(points, plain["rlvr"]) if points else None,
        raised=_top(written["rlvr"], args.top, raised=True),
        lowered=_top(written["base"], args.top, raised=False),
        kinds=top_tokens.top_kinds(rlvr, written["rlvr"].words, count=args.top),
        shown=[
            (author, each.words.prompt(number), each.words.tinted(each.tokens, number))
            for number in _to_show(written, args.shown)
            for author, each in written.items()
        ],
        geometry=geometry_report(pair, Path(args.out)) if args.geometry else None,
    )


def _write(
    models: Models, questions: Sequence[Question], author: str, args: argparse.Namespace
) -> Written:
    """One response to each question by one of the models."""
    tokenizer = models.tokenizer
    prompts = [tokenizer.encode(rendered(question, tokenizer)) for question in questions]
    responses: list[list[int]] = []
    for start in range(0, len(prompts), args.batch):
        drawn = decode(
            models.rlvr,
            models.base,
            prompts[start : start + args.batch],
            Recipe(extrapolation=AUTHORS[author], sampling=Sampling(temperature=args.temperature)),
            stop=models.stop,
            max_tokens=args.max_tokens,
            seed=args.seed + start,
        )
        responses += [each.tokens for each in drawn]
    words = top_tokens.Words(tokenizer=tokenizer, prompts=prompts, responses=responses)
    return Written(words=words, tokens=read_tokens(models, prompts, responses))


def _sweep(
    args: argparse.Namespace,
    pair: Pair,
    asked: Asked,
    models: Models,
    questions: Sequence[Question],
    base: Tokens,
) -> tuple[dict[str, list[Arm]], dict[Arm, Summary]]:
    """The arms of each criterion and what they gave, and plain base and rlvr."""
    swept = replacement.replacement_arms(
        base, criteria=args.criterion, shares=args.share, temperature=args.temperature
    )
    plain = [_author_arm(author, args) for author in AUTHORS]
    arms = list(dict.fromkeys([*plain, *(arm for some in swept.values() for arm in some)]))
    header = {
        "pair": pair.name,
        "task": asked.name,
        "samples": args.samples,
        "max_tokens": args.max_tokens,
        "seed": args.seed,
    }
    journal = Journal.open(Path(args.out) / "replacement.jsonl", header)
    Measurement(
        open_sampler=lambda arm: TransformersSampler(
            models, max_tokens=args.max_tokens, batch=args.batch
        ),
        judge=asked.judge,
        samples=args.samples,
        seed=args.seed,
        piece=args.batch,
    ).run(arms, questions, journal)
    return swept, summaries(journal, arms, [digest(question) for question in questions], ks=())


def _author_arm(author: str, args: argparse.Namespace) -> Arm:
    return Arm(extrapolation=AUTHORS[author], temperature=args.temperature)


def _to_show(written: Mapping[str, Written], count: int) -> list[int]:
    """The first prompts that the two models answered differently, then the others."""
    answers = [each.words.responses for each in written.values()]
    same = [base == rlvr for base, rlvr in zip(*answers, strict=True)]
    return sorted(range(len(same)), key=lambda number: same[number])[:count]


def _top(written: Written, count: int, *, raised: bool) -> list[top_tokens.Place]:
    return top_tokens.top_places(written.tokens, written.words, count=count, raised=raised)
