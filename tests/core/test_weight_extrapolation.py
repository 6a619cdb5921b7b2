"""Weight extrapolation and merging: the values written, for full and for adapter pairs."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlvr_decode import Extrapolation, Pair
from rlvr_decode.__main__ import main
from rlvr_decode.pair import write_pair
from rlvr_decode.testing import make_adapter, make_checkpoints
from rlvr_decode.weight_extrapolation import extrapolate, merge
from rlvr_decode.weights import Weights

TOKENS = torch.arange(3, 43)[None]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    directory = tmp_path_factory.mktemp("full")
    base, rlvr = make_checkpoints(directory, tied=False)
    defaults = Extrapolation(strength=1.0, plausibility=0.05)
    return write_pair(directory, name="full", base=base, rlvr=rlvr, defaults=defaults)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapter")
    base, _ = make_checkpoints(directory)
    adapter, _ = make_adapter(directory, base, scale=0.03)
    return write_pair(directory, name="low", base=base, rlvr=adapter)


def tensors(directory):
    weights = Weights.open(directory)
    return {name: weights.read(name) for name in weights}


@torch.no_grad()
def logits(directory):
    return AutoModelForCausalLM.from_pretrained(directory)(TOKENS).logits


@pytest.mark.parametrize("strength", [-1, -0.25, 0, 0.5, 2])
def test_every_tensor_goes_as_far(full, tmp_path, strength):
    made = extrapolate(full, tmp_path / "new", strength=strength)
    base, rlvr, new = (tensors(each.fetch()) for each in (full.base, full.rlvr, made.pair.rlvr))
    assert new.keys() == base.keys() and len(new) > 30
    for name in new:
        exact = base[name].double() + (1 + strength) * (rlvr[name].double() - base[name].double())
        torch.testing.assert_close(new[name].double(), exact, rtol=0, atol=1e-6)
        if strength in (-1, 0):
            assert torch.equal(new[name], base[name] if strength else rlvr[name])
    assert made.lost == 0 and (strength == -1 or 0.001 < made.lost_in_bfloat16 < 0.1)


def test_the_new_pair_serves_what_was_extrapolated(full, tmp_path):
    pair = extrapolate(full, tmp_path / "new", strength=0.5, name="free").pair
    assert pair.name == "free" and pair.defaults == Extrapolation()
    assert pair.base.directory == full.base.directory
    assert pair.provenance["strength"] == 0.5
    assert pair.provenance["from"]["name"] == "full"
    Pair.open(tmp_path / "new", verify=True)
    kept = extrapolate(full, tmp_path / "same", strength=0.0).pair
    assert kept.defaults == full.defaults


def test_bfloat16_keeps_what_it_can_and_says_what_not(full, tmp_path):
    made = extrapolate(full, tmp_path / "new", strength=1.0, dtype=torch.bfloat16)
    exact = extrapolate(full, tmp_path / "exact", strength=1.0)
    base, new, whole = (tensors(p.fetch()) for p in (full.base, made.pair.rlvr, exact.pair.rlvr))
    assert {tensor.dtype for tensor in new.values()} == {torch.bfloat16}
    lost = sum((new[n].double() - whole[n].double()).square().sum() for n in new)
    update = sum((whole[n].double() - base[n].double()).square().sum() for n in new)
    assert made.lost == made.lost_in_bfloat16 == pytest.approx(float(lost / update) ** 0.5)
    assert made.pair.provenance["lost"] == made.lost > 0.001
    config = json.loads((made.pair.rlvr.fetch() / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize("base_vocab", [504, 520])
def test_padded_rows_are_rlvrs(tmp_path, base_vocab):
    base, rlvr = make_checkpoints(tmp_path, base_vocab=max(base_vocab, 509), tied=False)
    if base_vocab < 509:  # the other way round: rlvr is the padded one
        base, rlvr = rlvr, make_checkpoints(tmp_path / "more", base_vocab=520, tied=False)[0]
    pair = write_pair(tmp_path, name="padded", base=base, rlvr=rlvr)
    new = tensors(extrapolate(pair, tmp_path / "new", strength=1).pair.rlvr.fetch())
    ours, theirs = tensors(base), tensors(rlvr)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = min(len(ours[name]), len(theirs[name]))
        assert new[name].shape == theirs[name].shape
        expected = 2 * theirs[name][:rows] - ours[name][:rows]
        torch.testing.assert_close(new[name][:rows], expected, rtol=0, atol=1e-6)
        assert torch.equal(new[name][rows:], theirs[name][rows:])


def test_a_scaled_adapter_is_that_update_times_the_factor(adapter, tmp_path):
    made = extrapolate(adapter, tmp_path / "new", strength=0.5)
    assert made.pair.rlvr.kind == "adapter" and made.lost == 0
    base = adapter.base.fetch()
    merged = [
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), pair.rlvr.fetch())
        .merge_and_unload()
        .state_dict()
        for pair in (adapter, made.pair)
    ]
    start = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name, before in start.items():
        expected = before + 1.5 * (merged[0][name] - before)
        torch.testing.assert_close(merged[1][name], expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="an adapter is only scaled"):
        extrapolate(adapter, tmp_path / "other", strength=0.5, dtype=torch.bfloat16)


def test_a_base_out_of_a_package_stays_one(adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    name = "smollm2-135m-instruct"
    shutil.copytree(adapter.base.fetch(), tmp_path / "rlvr-decode" / "checkpoints" / name)
    pair = write_pair(tmp_path / "pair", name="low", base=name, rlvr=adapter.rlvr.fetch())
    made = extrapolate(pair, tmp_path / "new", strength=0.5).pair
    assert made.base.fetched == pair.base.fetched == name


def test_merging_is_what_peft_makes_of_it(adapter, tmp_path):
    made = merge(adapter, tmp_path / "merged")
    base = adapter.base.fetch()
    model = AutoModelForCausalLM.from_pretrained(base)
    expected = PeftModel.from_pretrained(model, adapter.rlvr.fetch()).merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(
            logits(made.pair.rlvr.fetch()), expected(TOKENS).logits, rtol=0, atol=1e-4
        )
    assert made.pair.rlvr.kind == "full" and made.pair.defaults == adapter.defaults
    assert made.lost == 0 and made.lost_in_bfloat16 > 0.01
    Pair.open(tmp_path / "merged", verify=True)


def test_merging_a_full_pair_and_writing_over_one_are_refused(full, adapter, tmp_path):
    with pytest.raises(ValueError, match="full: its rlvr is full weights already"):
        merge(full, tmp_path / "new")
    with pytest.raises(ValueError, match="strength=nan: must be finite"):
        extrapolate(full, tmp_path / "new", strength=float("nan"))
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there: is there already; name a new directory"):
        merge(adapter, tmp_path / "there")
    with pytest.raises(ValueError, match="name 'a b': use letters"):
        merge(adapter, tmp_path / "new", name="a b")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_tensor_of_one_side_only_is_named(full, tmp_path):
    from safetensors.torch import save_file

    names = tensors(full.rlvr.fetch())
    for role, extra in (("base", {}), ("rlvr", {"model.more.weight": torch.ones(2)})):
        directory = tmp_path / role
        directory.mkdir()
        for file in full.rlvr.fetch().glob("*.json"):
            (directory / file.name).write_bytes(file.read_bytes())
        save_file(names | extra, directory / "model.safetensors")
    pair = write_pair(tmp_path, name="odd", base=tmp_path / "base", rlvr=tmp_path / "rlvr")
    with pytest.raises(ValueError, match=r"model.more.weight: in .*rlvr, but not in .*base"):
        extrapolate(pair, tmp_path / "new", strength=1)
    assert not (tmp_path / "new").exists()


def test_the_verbs(adapter, tmp_path, capsys):
    source = str(adapter.directory)
    assert main(["pair", "merge", source, "-o", str(tmp_path / "m"), "--dtype", "bfloat16"]) == 0
    told = capsys.readouterr().out
    lost = Pair.open(tmp_path / "m").provenance["lost"]
    assert f"storing took {lost:.2%} of the update" in told and "rlvr-decode serve" in told
    out = str(tmp_path / "x")
    assert main(["pair", "extrapolate", source, "--strength", "1", "--output", out]) == 0
    alphas = [
        json.loads((pair.rlvr.fetch() / "adapter_config.json").read_text())["lora_alpha"]
        for pair in (adapter, Pair.open(out))
    ]
    assert alphas[1] == 2 * alphas[0]
    updates = load_file(Pair.open(out).rlvr.fetch() / "adapter_model.safetensors")
    assert updates.keys() == load_file(adapter.rlvr.fetch() / "adapter_model.safetensors").keys()
    with pytest.raises(SystemExit):
        main(["pair", "merge", "tiny", "-o", str(tmp_path / "y")])
    assert "there is nothing to merge" in capsys.readouterr().err
