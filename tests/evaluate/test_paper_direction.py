"""The paper's protocol, in small, on the bundled pair."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "paper_direction", ROOT / "benchmarks" / "paper_direction.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """AIME-style: a whole number after a question, asked in chats."""
    file = tmp_path_factory.mktemp("data") / "sums.jsonl"
    sums = [(100 + 37 * k, 905 - 41 * k) for k in range(12)]
    lines = [{"problem": f"{a}+{b}=?", "answer": f"{a + b:04d}"} for a, b in sums]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def arguments(script, problems, out, *flags):
    small = ["--samples", "4", "--max-tokens", "40", "--instruction", "", "--out", str(out)]
    return script.parse(
        ["tiny", "--published", "unireason", "--data", str(problems), *small, *flags]
    )


def test_the_published_settings_add_up(script):
    """The gains over rlvr that the paper prints beside its bars."""
    gains = {"orz": 1.35, "dapo": 2.92, "unireason": 1.25}
    assert set(script.PUBLISHED) == set(gains)
    for name, gain in gains.items():
        published = script.PUBLISHED[name]
        assert published.avg_extrapolate - published.avg_rlvr == pytest.approx(gain, abs=0.005)
        assert published.avg_replace < published.avg_rlvr
        # Ratios p_rlvr / p_base of 0.67, 0.74 and 0.70.
        assert published.threshold in (-0.4, -0.3, -0.35) and published.strength in (0.05, 0.1)


def test_the_protocol_is_the_default(script, problems, tmp_path):
    args = script.parse(["tiny", "--published", "dapo", "--data", str(problems)])
    assert (args.samples, args.temperature, args.top_p, args.max_tokens) == (32, 1.0, 0.7, 20_000)
    assert args.reward == "math_verify" and "\\boxed{}" in args.instruction
    named = script.arms(script.PUBLISHED["dapo"], temperature=1.0, top_p=0.7)
    setting = named["selective extrapolation"].extrapolation
    assert (setting.gate, setting.threshold, setting.primary) == ("delta", -0.3, "base")
    assert setting.strength == 0.05 and setting.plausibility == 0
    assert named["selective replacement"].extrapolation.strength == 0
    assert all(arm.top_p == 0.7 for arm in named.values())


def test_four_arms_are_paired_by_problem(script, problems, tmp_path):
    args = arguments(script, problems, tmp_path, "--reward", "after_semicolon")
    text = script.run(args)
    assert text == (tmp_path / "report.md").read_text() and "12 problems × 4 samples" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    names = [row[0].removeprefix("| ") for row in rows]
    assert names == ["base", "rlvr", "selective replacement", "selective extrapolation"]
    accuracy = {name: float(row[1]) for name, row in zip(names, rows, strict=True)}
    assert accuracy["base"] < accuracy["rlvr"] and accuracy["base"] < accuracy[names[2]]
    assert rows[3][3] == "55.83" and rows[2][7].rstrip(" |").endswith("%")
    asked = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(asked) == 1 + 4 * 12 and all(len(row["rewards"]) == 4 for row in asked[1:])


def test_a_boxed_answer_is_graded_by_math_verify(script, problems, tmp_path):
    """The bundled pair never boxes, so the last number in its response is what is graded."""
    args = arguments(script, problems, tmp_path, "--samples", "2")
    script.run(args)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {reward for row in rows[1:] for reward in row["rewards"]} == {0.0, 1.0}
