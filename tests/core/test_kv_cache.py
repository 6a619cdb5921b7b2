"""The cache with room holds what transformers' own holds, and writes without moving."""

from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache, Qwen3Config

from rlvr_decode import kv_cache
from rlvr_decode.kv_cache import RoomyLayer, roomy_cache

CONFIG = Qwen3Config(num_hidden_layers=2)


def states(batch, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, tokens, 4, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("room", [0, 1, 3, 50])
def test_it_holds_what_the_plain_cache_holds(room, monkeypatch):
    """Through everything a sampler does, and beyond its room."""
    monkeypatch.setattr(kv_cache, "LEAST_ROOM", room)
    roomy, plain = roomy_cache(CONFIG), DynamicCache(config=CONFIG)
    acts = [
        lambda cache: cache.update(*states(2, 5, seed=0), 0),
        lambda cache: cache.batch_repeat_interleave(3),
        lambda cache: cache.update(*states(6, 1, seed=1), 0),
        lambda cache: cache.update(*states(6, 2, seed=2), 0),
        lambda cache: cache.batch_select_indices(torch.tensor([1, 1, 0, 1, 0, 1]) == 1),
        lambda cache: cache.update(*states(4, 1, seed=3), 0),
        lambda cache: cache.update(*states(4, 4, seed=4), 0),
    ]
    for act in acts:
        mine, theirs = act(roomy), act(plain)
        assert roomy.get_seq_length() == plain.get_seq_length()
        if mine is not None:
            assert all(map(torch.equal, mine, theirs))


def test_within_its_room_nothing_moves():
    layer = RoomyLayer()
    layer.update(*states(2, 5, seed=0))
    places = []
    for step in range(400):
        keys, _ = layer.update(*states(2, 1, seed=step))
        places.append((keys.data_ptr(), keys.untyped_storage().nbytes() / keys.nbytes))
    moves = sum(one != other for (one, _), (other, _) in pairwise(places))
    assert 0 < moves < 12
    # After a few, no more than a quarter lies empty.
    assert max(share for _, share in places[150:]) < 1.26


def test_what_was_returned_stays_as_it_was():
    layer = RoomyLayer()
    layer.update(*states(2, 5, seed=0))
    before, _ = layer.update(*states(2, 1, seed=1))
    copy = before.clone()
    layer.batch_select_indices(torch.tensor([0]))
    layer.update(*states(1, 1, seed=2))
    assert torch.equal(before, copy)


def test_layers_with_a_window_stay_transformers_own():
    config = Qwen3Config(
        num_hidden_layers=2,
        use_sliding_window=True,
        sliding_window=8,
        layer_types=["full_attention", "sliding_attention"],
    )
    kinds = [type(layer).__name__ for layer in roomy_cache(config).layers]
    assert kinds == ["RoomyLayer", "DynamicSlidingWindowLayer"]
