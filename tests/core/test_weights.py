"""Checkpoints written in shards, and what their storage loses."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlvr_decode.testing import make_checkpoints
from rlvr_decode.weights import Rounding, Weights, write_weights


def test_shards_load_in_transformers(tmp_path):
    base, _ = make_checkpoints(tmp_path)
    weights = Weights.open(base)
    (base / "model.safetensors").rename(tmp_path / "model.safetensors")
    source = Weights.open(tmp_path)
    write_weights(base, ((name, source.read(name)) for name in source), shard_bytes=50_000)
    index = json.loads((base / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(weights)
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert all((base / file).stat().st_size < 150_000 for file in files)
    assert index["metadata"]["total_size"] == sum(4 * source.read(n).numel() for n in source)
    model = AutoModelForCausalLM.from_pretrained(base)
    state = model.state_dict()
    assert all(torch.equal(state[name], source.read(name)) for name in source)


def test_one_file_needs_no_index(tmp_path):
    write_weights(tmp_path, [("a", torch.ones(3, 2).T), ("b", torch.zeros(2))])
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    written = Weights.open(tmp_path)
    assert list(written) == ["a", "b"] and written.read("a").shape == (2, 3)
    with pytest.raises(ValueError, match="c: not in"):
        written.read("c")


def test_rounding_by_hand():
    rounding = Rounding()
    # In bfloat16 the step above 1 is 2⁻⁷, so a quarter of one is lost and one of 2⁻⁶ is kept.
    exact = torch.tensor([1 + 2**-9, 1 + 2**-6])
    update = torch.tensor([2.0**-9, 2**-6])
    assert torch.equal(rounding.store(exact, update, torch.float32), exact)
    share = 2**-9 / (2**-18 + 2**-12) ** 0.5
    assert rounding.lost == 0
    assert rounding.lost_in_bfloat16 == pytest.approx(share)
    assert rounding.store(exact, update, torch.bfloat16).tolist() == [1, 1 + 2**-6]
    assert rounding.lost == pytest.approx(share / 2**0.5)
    assert Rounding().lost == 0


FULL_DISK = """
import resource, sys
from pathlib import Path
from rlvr_decode.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(["pair", "extrapolate", "tiny", "--strength", "1", "-o", sys.argv[1]]))
"""


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "new"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "File too large" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
