"""Pairs whose linear layers are our kernel's, and those that must stay vLLM's."""

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from rlvr_decode import Extrapolation
from rlvr_decode.engine import packing
from rlvr_decode.engine.packing import PackedHead, PackedLinear, pack_layers
from rlvr_decode.kernels.native import BuildError

STRENGTHS = [-1, 0, 0.5, 1, 1.5, 2, 3, 4]
runs_here = pytest.mark.skipif(
    not packing.kernel.takes(torch.empty(2, 2), torch.cpu.get_capabilities()),
    reason="the kernel's instructions are missing",
)


def methods_of(engine):
    (found,) = engine.apply_model(
        lambda model: {type(getattr(module, "quant_method", None)) for module in model.modules()}
    )
    return found


def check_answers(engine, exact, asked):
    from vllm import TokensPrompt

    params = [
        Extrapolation(strength=s).sampling_params(temperature=0, max_tokens=6, ignore_eos=True)
        for s in STRENGTHS
    ]
    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in asked]
    answers = engine.generate(inputs, params, use_tqdm=False)
    for prompt, strength, answer in zip(asked, STRENGTHS, answers, strict=True):
        tokens = answer.outputs[0].token_ids
        assert exact(prompt, tokens, strength).argmax(-1).tolist() == list(tokens)


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=runs_here)])
def test_a_full_pair_is_exact_either_way(start, pair, exact, prompts, monkeypatch, packed):
    if not packed:
        monkeypatch.setattr(packing, "packs", lambda weight: False)
    engine = start(pair)
    assert {PackedLinear, PackedHead} & methods_of(engine) == (
        {PackedLinear, PackedHead} if packed else set()
    )
    check_answers(engine, exact, prompts(8, seed=21))


def test_without_a_compiler_an_engine_says_so_and_works(start, pair, exact, prompts, monkeypatch):
    def fail(cache):
        raise BuildError("no C++ compiler")

    monkeypatch.setattr(packing.kernel, "load", fail)
    monkeypatch.setattr(packing.kernel, "takes", lambda *of: True)
    packing._kernel_loads.cache_clear()
    try:
        with pytest.warns(UserWarning, match="slower without its kernel for CPUs: no C.. compiler"):
            engine = start(pair)
    finally:
        packing._kernel_loads.cache_clear()
    assert PackedLinear not in methods_of(engine)
    check_answers(engine, exact, prompts(8, seed=22))


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
