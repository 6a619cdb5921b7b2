"""From rows to what is reported: each arm's means, and what sets it apart from plain rlvr."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlvr_decode.evaluate.arms import PAIR, Arm
from rlvr_decode.evaluate.journal import Journal, Row
from rlvr_decode.evaluate.statistics import Interval, paired_difference, pass_at_k, t_interval

Intervals = Callable[..., Interval]


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """One arm over the prompts it was asked, in a fixed order.

    accuracies  one for each prompt: the mean reward of its samples.
    accuracy    their mean: Avg@k.
    pass_at     by k, the unbiased Pass@k; a reward of 1 or more is correct.
    length      mean tokens of a response.
    entropy     mean over responses, in nats a token; None where no engine told.
    rate        of intervention, mean over responses; None without a gate.
    finished    share of responses that ended by themselves.
    traits      mean over responses, by name.
    """

    arm: Arm
    accuracies: list[float]
    accuracy: Interval
    pass_at: dict[int, float]
    length: float
    finished: float
    entropy: float | None
    rate: float | None
    traits: dict[str, float]


def summarise(
    arm: Arm, rows: Sequence[Row], *, ks: Sequence[int], interval: Intervals = t_interval
) -> Summary:
    """What the rows of one arm say; `ks` beyond its samples are left out."""
    accuracies = [statistics.fmean(row.rewards) for row in rows]
    samples = min(len(row.rewards) for row in rows)
    return Summary(
        arm=arm,
        accuracies=accuracies,
        accuracy=interval(accuracies),
        pass_at={k: statistics.fmean(_passes(row, k) for row in rows) for k in ks if k <= samples},
        length=statistics.fmean(_each(row.lengths for row in rows)),
        finished=statistics.fmean(_each(row.finished for row in rows)),
        entropy=_mean_or_none(_each(row.entropies for row in rows)),
        rate=_mean_or_none(_each(row.rates for row in rows)),
        traits={
            name: statistics.fmean(_each(row.traits[name] for row in rows))
            for name in rows[0].traits
        },
    )


def summaries(
    journal: Journal,
    arms: Sequence[Arm],
    prompts: Sequence[str],
    *,
    ks: Sequence[int],
    interval: Intervals = t_interval,
) -> dict[Arm, Summary]:
    """Every arm over the same prompts."""
    return {
        arm: summarise(arm, journal.rows(arm, prompts), ks=ks, interval=interval) for arm in arms
    }


def gain(of: Summary, over: Summary, interval: Intervals = t_interval) -> Interval:
    """Accuracy gained, paired by prompt."""
    return paired_difference(of.accuracies, over.accuracies, interval=interval)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The suggested arm, and what it gains over plain rlvr on the prompts it was chosen on."""

    arm: Arm
    gain: Interval | None

    @property
    def is_rlvr(self) -> bool:
        return self.gain is None


def suggest(found: dict[Arm, Summary], interval: Intervals = t_interval) -> Choice:
    """The arm whose gain over rlvr, drawn the same way, has the highest lower confidence bound.

    A bound, so that of many arms the lucky one with few prompts does not win; plain rlvr if no
    bound is above 0. Arms drawn as the first one are compared.
    """
    first = next(iter(found))
    best = Choice(arm=first.rlvr, gain=None)
    for arm, summary in found.items():
        drawn_alike = (arm.temperature, arm.top_p) == (first.temperature, first.top_p)
        if arm.variant != PAIR or arm.min_p or not drawn_alike or arm == arm.rlvr:
            continue
        over_rlvr = gain(summary, found[arm.rlvr], interval)
        if over_rlvr.low > (best.gain.low if best.gain else 0.0):
            best = Choice(arm=arm, gain=over_rlvr)
    return best


def _passes(row: Row, k: int) -> float:
    return pass_at_k(len(row.rewards), sum(reward >= 1 for reward in row.rewards), k)


def _each(lists: object) -> list[float]:
    return [value for values in lists for value in values]  # type: ignore[attr-defined]


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return statistics.fmean(told) if told and len(told) == len(values) else None
