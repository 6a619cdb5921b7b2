"""Two processes, with and without sharding, make of a recipe what one process makes of it."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlvr_decode.training.processes.distributed import Processes, processes
from rlvr_decode.training.run.metrics import MetricsLog
from rlvr_decode.training.setup import check_sections
from rlvr_decode.training.trainer import run

SCRIPT = Path(__file__).with_name("distributed_runs.py")
_RUNS = runpy.run_path(str(SCRIPT))
Digits, runs = _RUNS["Digits"], _RUNS["runs"]
NAMES = ("weights", "listwise", "dynamic", "greedy")
FILES = dict.fromkeys(("weights", "dynamic"), "model") | dict.fromkeys(
    ("listwise", "greedy"), "adapter_model"
)


@pytest.fixture(scope="module")
def together(micro_base, tmp_path_factory):
    """The directory of what two processes have made, and what they printed."""
    out = tmp_path_factory.mktemp("together")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(SCRIPT), str(micro_base), str(out), str(out / "stopped")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out, done.stdout


@pytest.fixture(scope="module")
def alone(micro_base, tmp_path_factory):
    """The directory of what one process has made."""
    out = tmp_path_factory.mktemp("alone")
    for name, config in runs(str(micro_base), str(out)).items():
        run(replace(config, name=name), Digits())
    return out


def results(directory, name):
    lines = MetricsLog(directory / name / "metrics.jsonl").read()
    return lines, load_file(directory / name / "rlvr" / f"{FILES[name]}.safetensors")


def check_same(weights, expected):
    """To rounding, in units of a step of AdamW (1e-2), which divides small gradients by their size
    and so follows rounding alone where there is no gradient."""
    assert weights.keys() == expected.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(weight, expected[key], rtol=0, atol=5e-5)
        assert (weight - expected[key]).square().mean().sqrt() < 1e-6


@pytest.mark.parametrize("way", ["plain", "sharded"])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_make_what_one_makes(together, alone, name, way):
    lines, weights = results(together[0] / way, name)
    expected_lines, expected = results(alone, name)
    check_same(weights, expected)
    assert len(lines) == len(expected_lines) == 4
    for line, wanted in zip(lines, expected_lines, strict=True):
        assert line.keys() == wanted.keys()
        assert line.get("reset") == wanted.get("reset")
        for key in line.keys() - {"tokens_per_second", "reset"}:
            assert line[key] == pytest.approx(wanted[key], rel=1e-3, abs=2e-5), (key, line["step"])
    # The policy has moved by far more than that.
    assert expected_lines[2]["kl_ref"] > 1e-3


def test_only_the_first_process_writes(together, alone):
    kept, expected = (
        {str(path.relative_to(at)) for path in at.rglob("*")}
        for at in (together[0] / "plain", alone)
    )
    assert kept == expected - {file for file in expected if file.endswith("/lock")}


def test_one_process_that_is_to_stop_stops_all_and_one_alone_goes_on(together, alone, micro_base):
    out, printed = together
    told = sorted(json.loads(line) for line in printed.splitlines() if line.startswith("["))
    message = "stopped on request after step 1; the same command goes on from there"
    assert told == [[0, message], [1, message]]
    config = runs(str(micro_base), str(out / "stopped"))["weights"]
    pair = run(replace(config, shard=True), Digits())
    weights = load_file(pair.parent / "rlvr" / "model.safetensors")
    check_same(weights, results(alone, "weights")[1])


LOST = """
import os, sys
from rlvr_decode.training.processes.distributed import processes
with processes(3.0) as group:
    group.wait()
    if not group.is_first:
        os.kill(os.getpid(), int(sys.argv[1]))
    group.most(1)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "stalls"])
def test_a_process_that_is_lost_ends_the_other_by_name(number):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        group["MASTER_PORT"] = str(listener.getsockname()[1])
    first, other = (
        subprocess.Popen(
            [sys.executable, "-c", LOST, str(int(number))],
            env=os.environ | group | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    )
    try:
        _, said = first.communicate(timeout=120)
    finally:
        other.kill()
        other.communicate()
    assert first.returncode == 1
    assert "LostProcess: process 0 of 2 has lost another one, which has died or has not" in said


def test_shares_are_whole_groups_and_add_up():
    group_B = torch.tensor([4, 4, 9, 9, 9, 2, 7, 7])
    parts = [Processes(rank=rank, size=3).rows(group_B).tolist() for rank in range(3)]
    assert parts == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert [list(Processes(rank=r, size=3).share("ab")) for r in range(3)] == [[], ["a"], ["b"]]
    assert Processes().merged({"a": 1.5, "b_max": 2.0}) == {"a": 1.5, "b_max": 2.0}


def test_fewer_prompts_than_processes_are_refused(micro_base):
    config = runs(str(micro_base), "")["weights"]
    with pytest.raises(ValueError, match=r"rollout\.prompts=5: fewer than the 6 processes"):
        check_sections(config, Processes(rank=0, size=6))


def test_what_only_a_recipe_can_switch_on_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="ACCELERATE_USE_FSDP .* set shard=true"), processes():
        pass
