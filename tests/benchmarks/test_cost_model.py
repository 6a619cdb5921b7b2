"""The cost model against a model small enough to be done by hand."""

import pytest
from cost_model import (
    H200,
    QWEN2_5,
    VARIANTS,
    Device,
    Shape,
    Variant,
    decode_seconds,
    parts,
    prefill_seconds,
    requests_that_fit,
    weight_bytes,
)
from traffic import Load, simulate

# Products: qkv 8×4, o 4×4, gate and up 12×4, down 4×6: 32 + 16 + 48 + 24 = 120 weights a layer.
TOY = Shape(hidden=4, intermediate=6, layers=2, heads=2, kv_heads=1, head_dim=2, vocab=10)
SLOW_MEMORY = Device(bandwidth=1.0, flops=1e9, memory=1e4)
SLOW_ARITHMETIC = Device(bandwidth=1e9, flops=1.0)
RANK_1 = Variant(copies=1, bodies=2, heads=1, passes=3, rank=1)


def test_weights_by_hand():
    assert TOY.layer_weights == 240 and TOY.head_weights == 40
    assert TOY.weights == 240 + 2 * 40
    assert TOY.kv_bytes == 2 * 2 * 2 * 1 * 2  # bytes, keys and values, layers, heads, head size
    # A: three of 4, one of 4, two of 4, one of 6 inputs; B: 8 + 4 + 12 + 4 outputs; two layers.
    assert TOY.adapter_weights(1) == 2 * (12 + 4 + 8 + 6 + 8 + 4 + 12 + 4)


def test_a_step_by_hand_where_reading_is_all():
    """3 requests, 5 tokens of context: 480 of layers, 15 · 16 cached, 80 of head, 3 · 3 · 40."""
    options = {"requests": 3, "context": 5}
    single = decode_seconds(TOY, VARIANTS["single"], SLOW_MEMORY, **options)
    assert single == pytest.approx(480 + 240 + 80 + 360)
    full = decode_seconds(TOY, VARIANTS["full pair"], SLOW_MEMORY, **options)
    assert full == pytest.approx(2 * single)
    adapter = decode_seconds(TOY, RANK_1, SLOW_MEMORY, **options)
    assert adapter == pytest.approx(480 + 2 * 116 + 480 + 80 + 360)


def test_a_step_by_hand_where_arithmetic_is_all():
    """Two operations a weight and token; attention 4 · layers · heads · size a cached token."""
    options = {"requests": 3, "context": 5}
    single = decode_seconds(TOY, VARIANTS["single"], SLOW_ARITHMETIC, **options)
    assert single == pytest.approx(2 * 3 * 240 + 15 * 4 * 2 * 2 * 2 + 2 * 3 * 40, rel=1e-6)
    adapter = decode_seconds(TOY, RANK_1, SLOW_ARITHMETIC, **options)
    assert adapter == pytest.approx(2 * 6 * 240 + 2 * 3 * 116 + 960 + 2 * 3 * 40, rel=1e-6)


def test_a_gate_costs_the_second_head_and_its_passes():
    gated, free = (
        {part.name: part for part in parts(TOY, VARIANTS[name], tokens=3, logits=3, read=15)}
        for name in ("adapter pair, gated", "adapter pair")
    )
    assert gated["head"].flops == 2 * free["head"].flops and gated["head"].bytes == 80
    assert gated["logits"].bytes > free["logits"].bytes
    assert gated["layers"] == free["layers"] and gated["attention"] == free["attention"]


def test_messages_by_hand():
    """2 GPUs, 3 tokens: 4 all-reduces of 3·4·2 bytes, half twice, and half of 3·10·2 of logits."""
    device = Device(bandwidth=1e12, flops=1e12, link=1.0)
    alone = decode_seconds(TOY, VARIANTS["single"], device, requests=3, context=5, gpus=2)
    assert alone == pytest.approx(2 * 0.5 * 4 * 24 + 0.5 * 60, rel=1e-6)
    delays = Device(bandwidth=1e12, flops=1e12, link=1e12, latency=1.0)
    counted = {
        name: decode_seconds(TOY, VARIANTS[name], delays, requests=3, context=5, gpus=2)
        for name in ("single", "full pair", "adapter pair")
    }
    assert counted == pytest.approx({"single": 5, "full pair": 10, "adapter pair": 5})


def test_memory_by_hand():
    assert weight_bytes(TOY, VARIANTS["full pair"]) == 2 * 640
    assert weight_bytes(TOY, RANK_1) == 640 + 232
    # 9000 bytes less the weights, over 10 tokens of 16 bytes, or of 32.
    fit = {
        name: requests_that_fit(TOY, VARIANTS[name], SLOW_MEMORY, context=10)
        for name in ("single", "full pair")
    }
    assert fit == {"single": (9000 - 640) // 160, "full pair": (9000 - 1280) // 320}
    small = Device(bandwidth=1, flops=1, memory=700)
    assert requests_that_fit(TOY, VARIANTS["single"], small, context=10) == 0


def test_the_published_sizes_of_qwen():
    billions = {name: shape.weights / 1e9 for name, shape in QWEN2_5.items()}
    assert billions == pytest.approx({"7B": 7.62, "32B": 32.8, "72B": 72.7}, rel=2e-3)


def test_an_adapter_pair_costs_one_model_where_weights_are_all_and_two_where_arithmetic_is():
    shape = QWEN2_5["7B"]
    cost = {
        name: (
            decode_seconds(shape, VARIANTS[name], H200, requests=1, context=128),
            prefill_seconds(shape, VARIANTS[name], H200, prompt=8192),
        )
        for name in ("single", "adapter pair")
    }
    (step, prompt), (pair_step, pair_prompt) = cost["single"], cost["adapter pair"]
    assert pair_step / step < 1.03
    assert 1.95 < pair_prompt / prompt < 2.05


def test_traffic_without_extrapolation_costs_one_model():
    shape, load = QWEN2_5["7B"], Load(rate=20.0, share=0.0, requests=40, answer=32)
    plain = simulate(shape, VARIANTS["full pair"], H200, load)
    assert plain.without_base == 1.0
    assert plain.p95_ms == simulate(shape, VARIANTS["single"], H200, load).p95_ms
    mixed = Load(rate=20.0, share=0.5, requests=40, answer=32)
    ours, theirs = (
        simulate(shape, VARIANTS[name], H200, mixed) for name in ("adapter pair", "full pair")
    )
    assert ours.without_base < 1.0 and ours.p95_ms < theirs.p95_ms


def test_one_request_of_one_token_takes_one_step():
    """Its prompt is read in the step that gives its token."""
    load = Load(rate=1.0, share=1.0, requests=1, prompt=7, answer=1e-9)
    served = simulate(TOY, VARIANTS["single"], SLOW_ARITHMETIC, load)
    # 8 tokens through 240 weights, 7 cached ones, one row of the head.
    assert served.median_ms == pytest.approx(1e3 * (2 * 8 * 240 + 7 * 32 + 80), rel=1e-5)
