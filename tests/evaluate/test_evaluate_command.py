"""`rlvr-decode evaluate` from its command line to its report, and its words for what cannot be."""

import json
import shutil
import socket

import pytest

from rlvr_decode.__main__ import main
from rlvr_decode.pair import Pair, locate

SMALL = ["--prompts", "24", "--confirm", "24", "--max-tokens", "40", "--samples", "2"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A copy of the bundled pair, whose defaults may be rewritten."""
    directory = tmp_path_factory.mktemp("pairs") / "tiny"
    shutil.copytree(locate("tiny").parent, directory)
    return directory


@pytest.fixture(scope="module")
def evaluated(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    flags = ["--task", "add3", "--strength", "1", "3", "--write", "-o", str(out), *SMALL]
    assert main(["evaluate", str(tiny), *flags]) == 0
    return out


def rows_of(out):
    header, *rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return header["evaluation"], rows


def test_every_arm_has_a_row_for_each_prompt(evaluated):
    header, rows = rows_of(evaluated)
    assert header["pair"] == "tiny" and header["task"] == "add3"
    arms = {json.dumps(row["arm"]): [] for row in rows}
    for row in rows:
        arms[json.dumps(row["arm"])].append(row["prompt"])
    # rlvr, base, two strengths; mask, control, three temperatures, two moved weights.
    assert len(arms) == 11
    assert all(len(set(prompts)) == len(prompts) for prompts in arms.values())
    assert {len(prompts) for prompts in arms.values()} == {24, 48}


def test_the_report_shows_the_pairs_shapes(evaluated):
    """Base below rlvr below strength 3, fewer shortcuts, longer responses: see the pair's notes."""
    _, rows = rows_of(evaluated)

    def mean(values, strength):
        chosen = [
            value
            for row in rows
            if row["arm"]["extrapolation"]["strength"] == strength
            and (row["arm"]["variant"], row["arm"]["temperature"]) == ("pair", 1.0)
            for value in values(row)
        ]
        return sum(chosen) / len(chosen)

    rewards = [mean(lambda row: row["rewards"], strength) for strength in (-1, 0, 3)]
    shortcuts = [mean(lambda row: row["traits"]["shortcut"], strength) for strength in (-1, 0, 3)]
    assert rewards == sorted(rewards) and shortcuts == sorted(shortcuts, reverse=True)
    report = (evaluated / "report.md").read_text()
    for words in ("## Suggestion", "on 24 fresh prompts", "along a shuffled vocabulary",
                  "weights at strength 0.5", "Pass@2 %"):  # fmt: skip
        assert words in report
    assert (evaluated / "strength.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_suggested_and_held_became_the_default(evaluated, tiny):
    defaults = Pair.open(tiny).defaults
    assert defaults.strength in (1.0, 3.0) and defaults.plausibility == 0.05
    assert Pair.read(tiny).provenance == Pair.read("tiny").provenance


def test_what_is_there_is_not_done_again(evaluated, tiny, monkeypatch):
    from rlvr_decode.evaluate import with_transformers

    def fail(pair):
        raise AssertionError("nothing was left to measure")

    monkeypatch.setattr(with_transformers, "open_models", fail)
    before = (evaluated / "results.jsonl").read_bytes()
    flags = ["--task", "add3", "--strength", "1", "3", "-o", str(evaluated), *SMALL]
    assert main(["evaluate", str(tiny), "--plausibility", "0.05", *flags]) == 0
    assert (evaluated / "results.jsonl").read_bytes() == before


def test_a_file_of_questions_is_judged_by_the_reward_named(tmp_path):
    data = tmp_path / "sums.jsonl"
    lines = [
        {"prompt": f"{a}+{b}=?\n", "answer": f"{a + b:04d}"}
        for a, b in [(100 + 37 * k, 900 - 41 * k) for k in range(8)]
    ]
    data.write_text("\n".join(map(json.dumps, lines)))
    flags = ["--data", str(data), "--reward", "after_semicolon", "--confirm", "0", "--weights",
             "--rival-temperature", "--control", "none", "--gate", "delta", "--threshold", "-0.3",
             "--primary", "base", "--strength", "0", "--interval", "bootstrap", "--keep-texts",
             "-o", str(tmp_path / "out")]  # fmt: skip
    assert main(["evaluate", "tiny", *flags]) == 0
    _, rows = rows_of(tmp_path / "out")
    assert len(rows) == 3 * 8 and all(len(row["texts"]) == 2 for row in rows)
    gated = [row for row in rows if row["arm"]["extrapolation"]["gate"] == "delta"]
    assert all(0 <= rate <= 1 for row in gated for rate in row["rates"])
    for row in rows:
        assert all(reward in (0.0, 1.0) for reward in row["rewards"])


def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--task", "add4"], "task.name='add4': unknown; known: add3"),
        (["--task", "add3", "--option", "digits=4"], "task add3: unknown digits; known: none"),
        (["--task", "add3", "--reward", "exact"], "--reward exact: belongs to --data"),
        (["--data", "absent.jsonl"], "path='absent.jsonl': no such file"),
        (["--data", "EMPTY"], "has no prompts"),
        (["--data", "notes.txt"], "must end in one of .jsonl, .csv, .parquet"),
        (["--task", "add3", "--threshold", "-0.3"], "--threshold -0.3: needs a --gate, one of"),
        (["--task", "add3", "--gate", "delta"], "--gate delta: needs --threshold, such as -0.3"),
        (["--task", "add3", "--gate", "jsd", "--threshold", "3"], "threshold=3.0: must be from 0"),
        (["--task", "add3", "--primary", "base"], "--primary base: needs a --gate"),
        (["--task", "add3", "--strength", "99"], "strength=99.0: must be from -1 to 10"),
        (["--task", "add3", "--temperature", "-1"], "temperature=-1.0: must be from 0 to 2"),
        (["--task", "add3", "--samples", "0"], "--samples 0: at least 1"),
        (["--task", "add3", "--prompts", "1", "--confirm", "0"], "over prompts needs at least 2"),
        (["--task", "add3", "--max-tokens", "999", "--prompts", "2"], "leaves room for"),
        (["--task", "add3", "--endpoint", "DEAD"], "nobody answers"),
        (["--task", "add3", "--endpoint", "DEAD", "--weights", "1"], "serves the pair alone"),
        (["--task", "add3", "--engine", "vllm", "--control", "vocabulary"], "use --control update"),
        (["--task", "add3", "--engine-arg", "x", "--engine", "vllm"], "write it as key=value"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(flags, words, tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("\n")
    stand_ins = {
        "DEAD": f"http://127.0.0.1:{unused_port()}/v1",
        "EMPTY": str(tmp_path / "empty.jsonl"),
    }
    flags = [stand_ins.get(flag, flag) for flag in flags]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "tiny", "-o", str(tmp_path / "out"), *flags])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_results_of_another_task_are_not_mixed_in(evaluated, capsys):
    flags = ["--task", "add3", "--seed", "5", "-o", str(evaluated), *SMALL]
    with pytest.raises(SystemExit):
        main(["evaluate", "tiny", *flags])
    assert "was begun with seed=0, not 5; ask the same, or name another --out" in (
        capsys.readouterr().err
    )
