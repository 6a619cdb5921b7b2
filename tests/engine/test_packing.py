"""Pairs whose linear layers are our kernel's, and those that must stay vLLM's."""

import re

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from rlvr_decode.engine import packing
from rlvr_decode.engine.packing import PackedHead, PackedLinear, pack_layers
from rlvr_decode.kernels.native import BuildError

runs_here = pytest.mark.skipif(
    not packing.kernel.takes(torch.empty(2, 2), torch.cpu.get_capabilities()),
    reason="the kernel's instructions are missing",
)


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=runs_here)])
def test_a_full_pair_is_exact_either_way(
    start, pair, methods_of, check_greedy, monkeypatch, packed
):
    if not packed:
        monkeypatch.setattr(packing, "packs", lambda weight: False)
    engine = start(pair)
    assert {PackedLinear, PackedHead} & methods_of(engine) == (
        {PackedLinear, PackedHead} if packed else set()
    )
    check_greedy(engine, seed=21)


@pytest.mark.parametrize(
    "error", [BuildError("no C++ compiler"), RuntimeError("no home"), OSError("disk is full")]
)
def test_without_the_kernel_an_engine_says_so_and_works(
    start, pair, methods_of, check_greedy, monkeypatch, error
):
    def fail(cache):
        raise error

    monkeypatch.setattr(packing.kernel, "load", fail)
    monkeypatch.setattr(packing.kernel, "takes", lambda *of: True)
    packing._kernel_loads.cache_clear()
    try:
        with pytest.warns(
            UserWarning, match=re.escape(f"slower without its kernel for CPUs: {error}")
        ):
            engine = start(pair)
    finally:
        packing._kernel_loads.cache_clear()
    assert PackedLinear not in methods_of(engine)
    check_greedy(engine, seed=22)


def layer(method, width=6):
    made = nn.Module()
    made.weight = nn.Parameter(torch.randn(5, width), requires_grad=False)
    made.quant_method = method()
    return made


@runs_here
def test_layers_that_others_read_stay_as_they_are():
    class OfItsOwn(UnquantizedLinearMethod):
        pass

    model = nn.Module()
    model.plain, model.quantised = layer(UnquantizedLinearMethod), layer(OfItsOwn)
    model.read_by_others = layer(UnquantizedLinearMethod)
    model.read_by_others._cpu_skip_gemm_dispatch = True
    model.of_16_bits = layer(UnquantizedLinearMethod)
    model.of_16_bits.weight.data = model.of_16_bits.weight.data.half()
    model.embedding, model.lm_head = (layer(UnquantizedEmbeddingMethod) for _ in range(2))
    pack_layers(model)
    changed = {n for n, m in model.named_children() if isinstance(m.quant_method, PackedLinear)}
    assert changed == {"plain"}
    assert isinstance(model.lm_head.quant_method, PackedHead)
    assert type(model.embedding.quant_method) is UnquantizedEmbeddingMethod


@runs_here
def test_inputs_of_any_number_of_dimensions():
    model = nn.Module()
    model.layer = layer(UnquantizedLinearMethod)
    weight, bias = model.layer.weight.clone(), torch.randn(5)
    pack_layers(model)
    model.layer.quant_method.process_weights_after_loading(model.layer)
    for shape in ((6,), (3, 6), (2, 3, 6), (1, 2, 3, 6)):
        x = torch.randn(shape)
        found = model.layer.quant_method.apply(model.layer, x, bias)
        assert torch.allclose(found, nn.functional.linear(x, weight, bias), atol=1e-6)
