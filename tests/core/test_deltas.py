"""The update of a pair in low-rank form: known updates, and what no adapter can carry."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlvr_decode.deltas import Criterion, low_rank_deltas
from rlvr_decode.matrices import LINEAR_LAYERS, layer_of
from rlvr_decode.pair import write_pair
from rlvr_decode.testing import make_adapter, make_checkpoints

LAYER = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Base, an adapter of rank 16 on it, and the checkpoint the two make."""
    directory = tmp_path_factory.mktemp("known")
    base, _ = make_checkpoints(directory)
    return base, *make_adapter(directory, base, rank=16, scale=0.05)


@pytest.fixture(scope="module")
def known(checkpoints, tmp_path_factory):
    base, _, merged = checkpoints
    directory = tmp_path_factory.mktemp("pair")
    return write_pair(directory, name="known", base=base, rlvr=merged)


def changed(pair, directory, change):
    """The pair with another rlvr, its tensors edited in place."""
    rlvr = directory / "rlvr"
    shutil.copytree(pair.rlvr.fetch(), rlvr)
    tensors = load_file(rlvr / "model.safetensors")
    change(tensors)
    save_file(tensors, rlvr / "model.safetensors", metadata={"format": "pt"})
    return write_pair(directory / "pair", name="changed", base=pair.base.fetch(), rlvr=rlvr)


def updates(pair):
    base, rlvr = (
        AutoModelForCausalLM.from_pretrained(each.fetch(), dtype=torch.float32).state_dict()
        for each in (pair.base, pair.rlvr)
    )
    return {
        name.removesuffix(".weight"): rlvr[name] - base[name]
        for name in base
        if layer_of(name) in LINEAR_LAYERS
    }


@pytest.mark.parametrize("criterion", [Criterion(rank=16), Criterion(energy=0.99999)])
def test_a_known_update_is_recovered(known, criterion):
    deltas = low_rank_deltas(known, criterion)
    exact = updates(known)
    assert deltas.low_rank.keys() == exact.keys() and len(exact) == 21
    for layer, update in exact.items():
        found = deltas.low_rank[layer]
        assert found.rank == 16
        torch.testing.assert_close(found.left_MR @ found.right_RN, update, rtol=0, atol=2e-6)
        assert deltas.squares[layer] == pytest.approx(update.square().sum().item(), rel=1e-5)
    assert deltas.energy(16) == pytest.approx(1, abs=1e-6)
    assert deltas.parameters(16) == sum(16 * sum(update.shape) for update in exact.values())
    assert deltas.parameters(4) == deltas.parameters(16) // 4
    assert set(deltas.rest.values()) == {0.0} and deltas.dtype == torch.float32


def test_energy_is_that_of_the_leading_values(known):
    deltas = low_rank_deltas(known, Criterion(rank=16))
    exact = [torch.linalg.svdvals(update).double().square() for update in updates(known).values()]
    kept = sum(float(squares[:3].sum()) for squares in exact)
    assert deltas.energy(3) == pytest.approx(kept / sum(float(s.sum()) for s in exact), rel=1e-4)
    half = low_rank_deltas(known, Criterion(energy=0.5))
    for layer, squares in zip(updates(known), exact, strict=True):
        rank = half.low_rank[layer].rank
        shares = squares.cumsum(0) / squares.sum()
        assert shares[rank - 1] >= 0.5 > (shares[rank - 2] if rank > 1 else 0)


def test_the_noise_floor_finds_the_update_under_bfloat16_storage(known, tmp_path):
    def store(tensors):
        for name in tensors:
            tensors[name] = tensors[name].bfloat16()

    stored = changed(known, tmp_path, store)
    deltas = low_rank_deltas(stored, Criterion(noise_floor=True))
    # Rounding makes the update numerically of full rank; of the 16 true directions the weakest
    # may drown, and a stray one may stick out.
    ranks = [each.rank for each in deltas.low_rank.values()]
    assert min(ranks) >= 14 and max(ranks) <= 18 and sorted(ranks)[10] == 16
    assert all(torch.linalg.matrix_rank(update) > 60 for update in updates(stored).values())
    assert deltas.dtype == torch.bfloat16


def test_a_layer_that_did_not_change_has_no_delta(known, tmp_path):
    start = load_file(known.base.fetch() / "model.safetensors")
    name = f"{LAYER}.weight"
    pair = changed(known, tmp_path, lambda tensors: tensors.update({name: start[name]}))
    deltas = low_rank_deltas(pair, Criterion(rank=2))
    assert LAYER not in deltas.low_rank and len(deltas.low_rank) == 20


def test_what_an_adapter_cannot_carry_is_measured(known, tmp_path):
    def move(tensors):
        tensors["model.norm.weight"] *= 1.25
        tensors["model.layers.0.self_attn.q_norm.weight"][0] += 1

    deltas = low_rank_deltas(changed(known, tmp_path, move), Criterion(rank=2))
    assert deltas.rest["model.norm.weight"] == pytest.approx(0.25)
    assert deltas.rest["model.layers.0.self_attn.q_norm.weight"] == pytest.approx(1 / 32**0.5)
    assert deltas.rest["model.embed_tokens.weight"] == 0
    assert deltas.worst_rest == ("model.norm.weight", pytest.approx(0.25))
    assert len(deltas.rest) == 1 + 1 + 3 * 4


def test_something_out_of_nothing_moved_infinitely_far(known, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(known.base.fetch(), base)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"].zero_()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    pair = write_pair(tmp_path, name="zero", base=base, rlvr=known.rlvr.fetch())
    assert low_rank_deltas(pair, Criterion(rank=1)).worst_rest == ("model.norm.weight", math.inf)


def test_what_has_no_update_or_an_adapter_already_is_refused(checkpoints, tmp_path):
    base, adapter, _ = checkpoints
    low = write_pair(tmp_path / "low", name="low", base=base, rlvr=adapter)
    with pytest.raises(ValueError, match="low: its rlvr is an adapter already"):
        low_rank_deltas(low, Criterion(rank=1))
    same = write_pair(tmp_path / "same", name="same", base=base, rlvr=base)
    with pytest.raises(ValueError, match="same: no linear layer of rlvr differs from base"):
        low_rank_deltas(same, Criterion(rank=1))


def test_too_much_rank_is_refused_by_layer(known):
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.down_proj: .*max_rank=8 .* raise max"):
        low_rank_deltas(known, Criterion(energy=0.999), max_rank=8)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "give one of"),
        ({"rank": 3, "energy": 0.5}, "give one of"),
        ({"rank": 0}, "rank=0: must be at least 1"),
        ({"energy": 1.5}, r"energy=1.5: must be in \(0, 1\]"),
        ({"energy": float("nan")}, "energy=nan"),
    ],
)
def test_a_criterion_is_one_number_in_range(wrong, words):
    with pytest.raises(ValueError, match=words):
        Criterion(**wrong)
