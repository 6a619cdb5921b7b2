"""Measuring with a sampler that is a coin of known bias: pairing, resuming, choosing."""

import random
from dataclasses import dataclass, field

import pytest

from rlvr_decode.evaluate.arms import Arm, grid
from rlvr_decode.evaluate.journal import Journal
from rlvr_decode.evaluate.measure import Measurement
from rlvr_decode.evaluate.questions import digest
from rlvr_decode.evaluate.sampling import Response
from rlvr_decode.evaluate.summary import gain, suggest, summaries
from rlvr_decode.params import Extrapolation


@dataclass(frozen=True)
class Asked:
    text: str
    messages: tuple = ()


QUESTIONS = [Asked(str(number)) for number in range(240)]


@dataclass
class Coin:
    """Right with a probability that strength 1 raises most; remembers what it was asked."""

    calls: list = field(default_factory=list)
    open: int = 0
    dies_after: int | None = None

    def __call__(self, arm):
        self.open += 1
        return self

    def sample(self, questions, arm, *, samples, seed):
        if self.dies_after is not None and len(self.calls) == self.dies_after:
            raise KeyboardInterrupt
        self.calls.append((arm, [question.text for question in questions], seed))
        right = 0.5 + 0.2 * (1 - abs(1 - arm.extrapolation.strength))
        rng = random.Random(f"{seed}{arm}")
        return [
            [self.response(rng.random() < right, arm) for _ in range(samples)] for _ in questions
        ]

    def response(self, right, arm):
        text = "right" if right else "wrong"
        length = 10 + int(arm.extrapolation.strength)
        return Response(text=text, length=length, finished=True, entropy=0.5)

    def close(self):
        self.open -= 1


class Judge:
    def rewards(self, questions, texts):
        return [float(text == "right") for text in texts]

    def traits(self, text):
        return {"long": float(len(text) > 5)}


def measure(path, coin, arms, questions=QUESTIONS, piece=64, samples=2):
    journal = Journal.open(path / "results.jsonl", {"task": "coin"})
    measurement = Measurement(open_sampler=coin, judge=Judge(), samples=samples, piece=piece)
    measurement.run(arms, questions, journal)
    return summaries(journal, arms, [digest(q) for q in questions], ks=(1, 2, 4))


def arms_of(*strengths):
    settings = [Extrapolation(strength=strength) for strength in strengths]
    return grid(settings, temperatures=[1.0], top_p=1.0)


def test_every_arm_is_asked_the_same_and_the_engine_is_opened_and_closed_once(tmp_path):
    coin = Coin()
    found = measure(tmp_path, coin, arms_of(1.0))
    assert coin.open == 0
    by_arm = {arm: [] for arm in found}
    for arm, texts, seed in coin.calls:
        by_arm[arm].append((texts, seed))
    assert len(by_arm) == 3 and len({str(each) for each in by_arm.values()}) == 1
    assert [text for texts, _ in by_arm[Arm()] for text in texts] == [q.text for q in QUESTIONS]
    assert len({seed for _, seed in by_arm[Arm()]}) == 8
    far = found[Arm(extrapolation=Extrapolation(strength=1.0))]
    assert (far.length, far.entropy, far.rate, far.finished) == (11.0, 0.5, None, 1.0)
    assert set(far.pass_at) == {1, 2} and far.pass_at[1] == pytest.approx(far.accuracy.mean)
    assert far.traits == {"long": 0.0}


def test_a_greedy_arm_draws_once(tmp_path):
    found = measure(tmp_path, Coin(), [Arm(temperature=0.0)])
    assert set(found[Arm(temperature=0.0)].pass_at) == {1}


def test_a_run_that_was_stopped_goes_on_to_the_same_results(tmp_path):
    arms = arms_of(0.5, 1.0)
    whole = measure(tmp_path / "whole", Coin(), arms)
    dying = Coin(dies_after=11)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "stopped", dying, arms)
    assert dying.open == 0
    rest = Coin()
    assert measure(tmp_path / "stopped", rest, arms) == whole
    assert len(dying.calls) + len(rest.calls) == 4 * 8
    done = Coin()
    assert measure(tmp_path / "stopped", done, arms) == whole
    assert done.calls == [] and done.open == 0


def test_the_best_arm_is_suggested_and_gains_are_paired(tmp_path):
    found = measure(tmp_path, Coin(), arms_of(0.25, 1.0, 2.0), samples=8)
    choice = suggest(found)
    assert choice.arm.extrapolation.strength == 1.0 and not choice.is_rlvr
    assert choice.gain.mean == pytest.approx(0.2, abs=0.05) and choice.gain.low > 0.1
    rlvr = found[Arm()]
    gaps = [a - b for a, b in zip(found[choice.arm].accuracies, rlvr.accuracies, strict=True)]
    assert gain(found[choice.arm], rlvr).mean == pytest.approx(sum(gaps) / len(gaps))


def test_without_a_bound_above_zero_rlvr_is_suggested(tmp_path):
    found = measure(tmp_path, Coin(), arms_of(3.0, 5.0), questions=QUESTIONS[:40])
    assert suggest(found).is_rlvr and suggest(found).arm == Arm()
