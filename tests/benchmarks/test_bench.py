"""`make bench`: rows run apart, a failing one is told and fails the whole, the tables follow."""

import json
import shlex
import sys
from dataclasses import asdict

import bench
import pytest
from bench_table import BEGIN, END, inserted, latest, markdown, render, soaks
from findings import RESULTS, Finding

README = f"# Title\n\nbefore\n{BEGIN}\nyesterday\n{END}\nafter\n"
SCRIPT = """
import argparse, json, os
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("--findings", type=Path)
args = parser.parse_args()
line = {"what": "a step", "rival": "theirs", "values": [0.5, 0.7, 0.6], "at_most": 0.65}
args.findings.write_text(json.dumps(line) + "\\n")
Path(os.environ["BENCH_RESULTS"], "seen").write_text("yes")
"""
RED_GATE = "raise SystemExit('wrong results: nothing is timed')"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs `bench` with rows of one-file scripts: (exit status, README, records)."""

    def run_rows(scripts, *argv, seconds=60):
        rows = {}
        for name, text in scripts.items():
            path = tmp_path / f"{name}.py"
            path.write_text(text)
            rows[name] = bench.Row(command=shlex.quote(str(path)), seconds=seconds)
        monkeypatch.setattr(bench, "ROWS", rows)
        readme, results = tmp_path / "README.md", tmp_path / "results"
        results.mkdir(exist_ok=True)
        if not readme.exists():
            readme.write_text(README)
        flags = ["--readme", str(readme), "--results", str(results)]
        monkeypatch.setattr(sys, "argv", ["bench.py", *argv, *flags])
        status = bench.main()
        lines = (results / "bench.jsonl").read_text().splitlines()
        return status, readme.read_text(), [json.loads(line) for line in lines]

    return run_rows


def test_a_red_gate_is_told_and_the_other_rows_still_run(run, tmp_path):
    status, readme, records = run({"red": RED_GATE, "green": SCRIPT})
    assert status == 1
    assert [record["row"] for record in records] == ["red", "green"]
    assert records[0]["failed"] == "wrong results: nothing is timed" and not records[0]["findings"]
    assert "| red | **failed** |  | wrong results: nothing is timed |  |  |" in readme
    assert "| green | a step | theirs | 0.6 × (0.5–0.7) | ≤ 0.65 | holds |" in readme
    assert readme.startswith("# Title\n\nbefore\n") and readme.endswith("\nafter\n")
    assert "yesterday" not in readme
    assert (tmp_path / "results" / "seen").read_text() == "yes"
    assert (tmp_path / "results" / "bench.png").stat().st_size > 1000


def test_rendering_again_changes_nothing(run, tmp_path):
    _, first, _ = run({"green": SCRIPT})
    plot = (tmp_path / "results" / "bench.png").read_bytes()
    status, second, records = run({"green": SCRIPT}, "--render")
    assert status == 0 and first == second and len(records) == 1
    assert (tmp_path / "results" / "bench.png").read_bytes() == plot


def test_a_row_measured_again_takes_the_place_of_its_failure(run):
    run({"red": RED_GATE, "green": SCRIPT})
    status, readme, records = run({"red": SCRIPT, "green": SCRIPT}, "red")
    assert status == 0 and len(records) == 3
    assert "**failed**" not in readme


def test_a_script_that_hangs_or_finds_nothing_fails(run):
    scripts = {"hangs": "import time; time.sleep(60)", "empty": "pass"}
    status, _, records = run(scripts, seconds=2)
    assert status == 1
    assert [r["failed"] for r in records] == ["took more than 2 s", "found nothing"]


def test_an_unknown_row_is_refused(run):
    with pytest.raises(SystemExit):
        run({"green": SCRIPT}, "grene")


def record(**options):
    found = Finding(what="w", rival="r", values=[1.0], note="why")
    values = {
        "row": "one",
        "date": "2026-01-01T00:00:00Z",
        "commit": "abc",
        "device": "CPU",
        "threads": "1",
        "versions": {"torch": "2"},
        "seconds": 60.0,
        "findings": [asdict(found), asdict(found)],
    }
    return values | options


def test_notes_are_said_once():
    text = markdown([record(), record(row="two")])
    assert text.count("w [1]") == 4 and text.count("1. why") == 1


def test_figures_of_several_commits_say_so():
    assert "commit abc, def" in markdown([record(), record(commit="def")])


def test_the_last_record_of_each_row_counts_and_forgotten_rows_do_not(tmp_path):
    lines = [
        record(commit=c, row=r) for c, r in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "gone"))
    ]
    (tmp_path / "bench.jsonl").write_text("\n".join(map(json.dumps, lines)))
    kept = latest(tmp_path / "bench.jsonl", ("y", "x", "unmeasured"))
    assert [each["commit"] for each in kept] == ["b", "c"]


def test_a_page_without_marks_and_results_without_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="needs <!-- bench:begin -->"):
        inserted("# Title", "text")
    with pytest.raises(ValueError, match="make bench"):
        render(tmp_path, tmp_path / "README.md", order=("one",))


def test_the_committed_soaks_are_told():
    told = soaks(RESULTS / "soak.jsonl")
    assert {line.split(" pair")[0] for line in told} == {"full", "adapter"}
    assert all("0 wrong" in line and "MiB more memory" in line for line in told)
