"""The SmolLM2 study's report: every difference is paired, and against what its column says."""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

from rlvr_decode.evaluate.arms import Arm
from rlvr_decode.evaluate.journal import Row
from rlvr_decode.evaluate.summary import summarise
from rlvr_decode.params import Extrapolation

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "smollm2_table.py"
SPEC = importlib.util.spec_from_file_location("smollm2_table", SCRIPT)
report = sys.modules[SPEC.name] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(report)

PRIMARY = Arm(extrapolation=Extrapolation(strength=1.0, plausibility=0.05))
GREEDY = Arm(temperature=0.0)


def found(**rewards):
    """Summaries of arms by what each got for the same prompts."""
    arms = {
        "base": report.BASE, "rlvr": report.RLVR, "primary": PRIMARY, "greedy": GREEDY,
        "masked": PRIMARY.masked_rlvr,
    }  # fmt: skip
    made = {}
    for name, values in rewards.items():
        rows = [
            Row(prompt=str(i), rewards=[value], lengths=[3], finished=[True], entropies=[0.5],
                rates=[None])
            for i, value in enumerate(values)
        ]  # fmt: skip
        made[arms[name]] = summarise(arms[name], rows, ks=(1,))
    return made


def findings():
    sweep = found(
        rlvr=[1, 1, 0, 0], base=[0, 0, 0, 0], primary=[1, 1, 1, 0], masked=[1, 1, 0, 0],
        greedy=[1, 0, 1, 0],
    )  # fmt: skip
    return report.Findings(
        swept="ours",
        sweep=sweep,
        room=found(rlvr=[1, 1, 1, 0], base=[1, 0, 0, 0]),
        adapters={"lora": found(rlvr=[1, 0, 0, 0], greedy=[1, 1, 1, 0])},
        elsewhere={
            ("gcd", "ours"): found(rlvr=[0, 1, 0, 0], base=[1, 1, 0, 0], primary=[0, 0, 0, 0]),
            ("gcd", "lora"): found(rlvr=[1, 1, 1, 0]),
        },
        texts={"LICENSE": {"base": [1.0, 2.0], "ours": [1.1, 2.1], "lora": [1.0, 2.0]}},
        recipes={
            "ours": {"objective": "grpo", "seed": 0, "steps": 24},
            "lora": {"objective": "grpo", "seed": 0, "steps": 18},
        },
        primary=PRIMARY,
        samples=1,
        tokens=16,
    )


def lines(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


def test_differences_are_against_what_they_say():
    text = report.markdown(findings())
    assert "rlvr − base at T=1: +50.0 [" in text
    assert "strength 1, plausibility 0.05 − rlvr at T=1: +25.0 [" in text
    assert "base 25.0 [" in text and "rlvr − base +50.0 [" in text
    [greedy] = lines(text, "| rlvr | greedy")
    assert greedy.split(" | ")[2:5] == [
        report.percent(findings().sweep[GREEDY].accuracy),
        report.points(report.gain(findings().sweep[GREEDY], findings().sweep[report.RLVR],
                                  report.bootstrap_interval)),
        "–",
    ]  # fmt: skip
    [lora] = lines(text, "| lora | grpo")
    assert lora.startswith("| lora | grpo | 0 | 18 | 25.0 [") and "| -25.0 [" in lora
    [ours] = lines(text, "| ours, rlvr |")
    assert "25.0 [" in ours and "; -25.0 [" in ours
    [plain] = lines(text, "| lora, rlvr |")
    assert "; +25.0 [" in plain


def test_perplexity_is_of_the_mean_and_its_ratio_is_paired():
    text = report.markdown(findings())
    assert f"| base | {math.exp(1.5):.2f} |" in text
    # Both windows lose 0.1 nats, so the interval has no width.
    assert f"| ours | {math.exp(1.6):.2f}; 1.105 [1.105, 1.105] |" in text


def test_all_three_files_are_written(tmp_path):
    report.write_report(tmp_path / "smollm2", findings())
    rows = [json.loads(line) for line in (tmp_path / "smollm2.jsonl").read_text().splitlines()]
    sweep = [row for row in rows if row.get("measured") == "sweep"]
    assert [row["accuracy"]["mean"] for row in sweep] == [0.5, 0.0, 0.75, 0.5, 0.5]
    assert [row["over_rlvr"]["mean"] for row in sweep] == [0.0, -0.5, 0.25, 0.0, 0.0]
    assert (tmp_path / "smollm2.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "smollm2.md").read_text() == report.markdown(findings())


def test_arms_drawn_alike_are_compared_alike():
    cold = replace(PRIMARY, temperature=0.0)
    made = findings()
    made.sweep[cold] = made.sweep[PRIMARY]
    made.sweep[GREEDY] = made.sweep[report.BASE]
    text = report.markdown(made)
    [row] = lines(text, "| strength 1, plausibility 0.05 | greedy")
    over_rlvr, over_greedy = row.split(" | ")[3:5]
    assert over_rlvr.startswith("+25.0 [") and over_greedy.startswith("+75.0 [")
