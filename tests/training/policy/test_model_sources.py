"""Where a model may come from: a directory, or a pair's base; every part opens both."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlvr_decode.pair import Pair
from rlvr_decode.training.config import Adapter, Optim, Rollout, Task
from rlvr_decode.training.policy.model import located, named, open_model
from rlvr_decode.training.trainer import train_recipe

BASE = Pair.open("tiny").base.fetch()


def test_a_pair_stands_for_its_base(micro_base):
    assert located("pair:tiny") == BASE
    assert located(f"pair:{BASE.parent}") == BASE
    assert located("owner/model") == "owner/model"
    assert located(micro_base) == micro_base
    ours, theirs = (open_model(source)[0].state_dict() for source in ("pair:tiny", BASE))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_is_written_names_a_package_and_the_place_of_anything_else(monkeypatch):
    monkeypatch.setattr("rlvr_decode.training.policy.model.fetch", pytest.fail)
    assert named("smollm2-135m-instruct") == "smollm2-135m-instruct"
    assert named("pair:tiny") == BASE


def test_a_base_that_brings_code_is_refused(micro_base, tmp_path):
    copy = Path(shutil.copytree(micro_base, tmp_path / "base"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "evil.C"}}))
    (copy / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError, match=r"config.json: auto_map=.*evil.* would run the checkpoin"):
        open_model(copy)


def test_an_unknown_pair_is_told():
    with pytest.raises(ValueError, match="nowhere"):
        located("pair:nowhere")


@pytest.mark.parametrize("adapter", [None, Adapter(kind="lora", options={"rank": 2})])
def test_a_run_from_a_pair_makes_a_pair(micro, adapter):
    config = micro(
        task=Task(name="add3"),
        base="pair:tiny",
        rollout=Rollout(prompts=2, group=4, max_new_tokens=4),
        optim=Optim(steps=1),
        adapter=adapter,
    )
    pair = Pair.open(train_recipe(config))
    assert pair.base.fetch() == BASE
    assert train_recipe(replace(config)) == pair.rlvr.fetch().parent / "pair.json"
