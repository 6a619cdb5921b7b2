"""The bundled language-model pair: what ships of it is whole, and what it says of itself is so."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlvr_decode import fetched
from rlvr_decode.lora import read_factors
from rlvr_decode.pair import Pair, digests
from rlvr_decode.params import Extrapolation
from rlvr_decode.server.request import Served
from rlvr_decode.server.routes import describe
from rlvr_decode.training.config import load

SIZES = {"q_proj": 576, "k_proj": 192, "v_proj": 192, "o_proj": 576, "gate_proj": 1536}
SIZES |= {"up_proj": 1536, "down_proj": 576}


@pytest.fixture(scope="module")
def pair():
    return Pair.read("smollm2")


@pytest.fixture
def base(monkeypatch, tmp_path):
    """A stand-in for the fetched base: the shipped tokenizer and configs are not its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = tmp_path / "rlvr-decode" / "checkpoints" / "smollm2-135m-instruct"
    shutil.copytree(Pair.read("tiny").base.fetch(), directory)
    return directory


def test_the_adapter_is_the_one_that_was_recorded(pair):
    directory = pair.rlvr.fetch()
    assert pair.rlvr.kind == "adapter" and directory.is_relative_to(pair.directory)
    assert digests(directory, pair.rlvr.sha256) == dict(pair.rlvr.sha256)
    assert {file.name for file in directory.iterdir()} == set(pair.rlvr.sha256)
    assert sum(file.stat().st_size for file in pair.directory.rglob("*") if file.is_file()) < 6e6


def test_it_is_a_plain_lora_in_bfloat16_on_every_linear_layer(pair):
    directory = pair.rlvr.fetch()
    tensors = load_file(directory / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    factors = read_factors(directory)
    assert len(factors) == 30 * len(SIZES)
    for layer, (left_MR, right_RN) in factors.items():
        assert left_MR.shape == (SIZES[layer.rpartition(".")[2]], 8) and len(right_RN) == 8
        assert 0 < (left_MR @ right_RN).norm() < 10


def test_it_says_how_it_was_made(pair):
    recipe = load("smollm2")
    made = pair.provenance
    assert (made["recipe"], made["task"]) == (recipe.name, recipe.task.name)
    assert (made["objective"], made["seed"]) == (recipe.objective.name, recipe.seed)
    assert made["steps"] == recipe.optim.steps
    base, rlvr = (made["accuracies"][role]["held_out"] for role in ("base", "rlvr"))
    assert rlvr > base + 0.2
    lines = (pair.directory / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert [each["step"] for each in steps] == list(range(recipe.optim.steps + 1))
    assert steps[-1]["held_out"] == rlvr and steps[0]["held_out"] == base
    assert (pair.directory / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert pair.defaults == recipe.defaults


def test_it_names_no_place_on_the_machine_that_made_it(pair):
    texts = [file.read_text() for file in pair.directory.rglob("*.json*")]
    assert not [text for text in texts if '"/' in text]
    config = json.loads((pair.rlvr.fetch() / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == pair.base.fetched == "smollm2-135m-instruct"


def test_another_base_is_refused(pair, base):
    with pytest.raises(ValueError, match=r"base/model\.safetensors: sha256 is .*, recorded is 7ef"):
        pair.check()


def test_the_server_tells_where_the_base_comes_from(pair, base):
    answer = describe(pair, Served(names=("smollm2",), defaults=Extrapolation()))
    assert answer["base"] == {
        "kind": "full",
        "fetched": "smollm2-135m-instruct",
        "package": str(fetched.CHECKPOINTS["smollm2-135m-instruct"]),
        "sha256": dict(pair.base.sha256),
    }
    assert answer["rlvr"] == {"kind": "adapter", "sha256": dict(pair.rlvr.sha256)}
    assert str(Path(base)) not in json.dumps(answer)
