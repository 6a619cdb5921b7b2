"""Results on disk: what is there is not done again, what is about something else is refused."""

import json

import pytest

from rlvr_decode.evaluate.arms import Arm
from rlvr_decode.evaluate.journal import Journal, Row
from rlvr_decode.params import Extrapolation

HEADER = {"pair": "tiny", "seed": 0}
ARM = Arm(extrapolation=Extrapolation(strength=0.5, gate="delta", threshold=-0.3, primary="base"))


def row(prompt, reward=1.0):
    return Row(
        prompt=prompt,
        rewards=[reward, 0.0],
        lengths=[3, 4],
        finished=[True, False],
        entropies=[0.1, None],
        rates=[None, None],
        traits={"short": [1.0, 0.0]},
    )


def test_rows_come_back_as_they_went_in(tmp_path):
    path = tmp_path / "results.jsonl"
    Journal.open(path, HEADER).add(ARM, [row("a"), row("b", 0.25)])
    again = Journal.open(path, HEADER)
    assert again.rows(ARM, ["b", "a"]) == [row("b", 0.25), row("a")]
    assert again.has(ARM, "a") and not again.has(ARM, "c") and not again.has(Arm(), "a")


def test_a_line_cut_short_is_dropped_and_the_next_is_whole(tmp_path):
    path = tmp_path / "results.jsonl"
    Journal.open(path, HEADER).add(ARM, [row("a"), row("b")])
    path.write_text(path.read_text()[:-9])
    journal = Journal.open(path, HEADER)
    assert journal.has(ARM, "a") and not journal.has(ARM, "b")
    journal.add(ARM, [row("b")])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("prompt") for line in lines] == [None, "a", "b"]


def test_a_file_cut_in_its_first_line_is_begun_again(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"evaluation": {"pa')
    Journal.open(path, HEADER)
    assert json.loads(path.read_text()) == {"evaluation": HEADER}


def test_results_of_something_else_are_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    Journal.open(path, HEADER)
    with pytest.raises(ValueError, match="begun with seed=0, not 1; ask the same, or name another"):
        Journal.open(path, HEADER | {"seed": 1})
    path.write_text("1,2,3\n")
    with pytest.raises(ValueError, match="no results of this command; name another --out"):
        Journal.open(path, HEADER)
