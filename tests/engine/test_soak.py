"""A small soak: what benchmarks/soak.py finds of ten thousand requests, of two hundred."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("soak")


def test_answers_are_those_given_alone_and_nothing_is_left(soak, monkeypatch):
    from rlvr_decode import Pair

    # It takes longer than this for a process to settle; the long run looks at that.
    monkeypatch.setattr(soak, "MAX_GROWTH_MIB", 500.0)
    report = soak.soak(Pair.open("tiny"), requests=200, distinct=40, seed=1)
    assert report["wrong"] == 0, report["first_wrong"]
    assert not any(report["left"].values()), report["left"]
    assert report["passed"]
    assert report["finished"] + report["aborted"] == 200
    # Else it would have tested nothing.
    assert report["aborted"] > 5 and report["gated"] > 5
    assert report["num_preemptions"] > 0 and report["prefix_cache_hits"] > 0


def test_a_wrong_token_would_be_found(soak):
    tally = soak.Tally()
    asked = soak.Asked(prompt=(5,), extrapolation={"strength": 1}, sampling={})
    soak.compare(tally, "a", asked, (7, 8), (7, 8))
    soak.compare(tally, "b", asked, (7, 9), (7, 8))
    assert [each["name"] for each in tally.wrong] == ["b"]
