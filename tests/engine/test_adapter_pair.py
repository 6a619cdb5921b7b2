"""Adapter pairs: base weights once, both models on stacked tokens, exact like two checkpoints."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from rlvr_decode import Extrapolation
from rlvr_decode.engine import packing, stacked
from rlvr_decode.engine.delta_method import PackedProduct, WidenedProduct
from rlvr_decode.engine.packing import PackedHead
from rlvr_decode.engine.stacked import Down
from rlvr_decode.engine.twin_attention import DoubledHeads, TwinLayers
from rlvr_decode.kernels import delta_linear as kernel
from rlvr_decode.lora import read_factors, write_lora
from rlvr_decode.pair import write_pair
from rlvr_decode.testing import make_adapter, make_checkpoints

STRENGTHS = [-1, -0.5, 0, 0.25, 0.5, 1, 2, 4]
# The kernel is for CPUs with its instructions; vLLM's own product runs everywhere.
RUNS_HERE = kernel.takes(torch.empty(2, 2), torch.cpu.get_capabilities())
PRODUCTS = [WidenedProduct] + [PackedProduct] * RUNS_HERE


def use_vllms_product(monkeypatch):
    for module in (stacked, packing):
        monkeypatch.setattr(module, "packs", lambda weight: False)


@pytest.fixture(params=PRODUCTS)
def product(request, monkeypatch):
    """Each way to compute a layer, whichever this machine would choose."""
    if request.param is WidenedProduct:
        use_vllms_product(monkeypatch)
    return request.param


@pytest.fixture(scope="module")
def make_adapter_pair(tmp_path_factory):
    def make(**options):
        directory = tmp_path_factory.mktemp("adapter")
        base, _ = make_checkpoints(directory, **options)
        adapter, merged = make_adapter(directory, base)
        pair = write_pair(directory, name="adapter", base=base, rlvr=adapter)
        models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (base, merged)]
        return pair, models

    return make


@torch.no_grad()
def exact_logprobs(models, prompt, response, strength):
    tokens = torch.tensor([list(prompt) + list(response)])
    log_base, log_rlvr = (model(tokens).logits[0].double().log_softmax(-1) for model in models)
    mixed = (1 + strength) * log_rlvr - strength * log_base
    return mixed.log_softmax(-1)[len(prompt) - 1 : -1]


def check_answers(engine, models, prompts, strengths=STRENGTHS, plausibility=0.0):
    from vllm import TokensPrompt

    strengths = [strengths[i % len(strengths)] for i in range(len(prompts))]
    params = [
        Extrapolation(strength=strength, plausibility=plausibility).sampling_params(
            temperature=0, max_tokens=6, ignore_eos=True, logprobs=3
        )
        for strength in strengths
    ]
    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    answers = engine.generate(inputs, params, use_tqdm=False)
    for prompt, strength, answer in zip(prompts, strengths, answers, strict=True):
        (output,) = answer.outputs
        rows = exact_logprobs(models, prompt, output.token_ids, strength)
        assert rows.argmax(-1).tolist() == list(output.token_ids)
        for row, logprobs in zip(rows, output.logprobs, strict=True):
            for token, logprob in logprobs.items():
                assert abs(logprob.logprob - row[token].item()) < 1e-3


@pytest.mark.parametrize(
    "architecture, tied", [("qwen3", False), ("qwen2", True), ("llama", False), ("mistral", False)]
)
def test_no_greedy_token_differs(start, make_adapter_pair, prompts, architecture, tied):
    pair, models = make_adapter_pair(architecture=architecture, tied=tied)
    engine = start(pair, max_num_batched_tokens=64, enable_chunked_prefill=True)
    for _ in range(2):  # the second time from the prefix cache
        check_answers(engine, models, prompts(32))
    check_answers(engine, models, prompts(4, seed=1), strengths=[0])  # without base


def test_two_heads_and_one_product_agree(start, make_adapter_pair, prompts):
    """So small a plausibility cuts nothing, but it makes the engine compute base's logits."""
    pair, models = make_adapter_pair(tied=True)
    engine = start(pair)
    for plausibility in (0.0, 1e-30):
        check_answers(engine, models, prompts(16, seed=5), plausibility=plausibility)


@pytest.mark.parametrize("kind", [TwinLayers, DoubledHeads])
def test_every_way_to_attend_is_exact(start, make_adapter_pair, prompts, monkeypatch, kind):
    """Each device has its own; here are all. Plain steps between others read rlvr's half alone."""
    monkeypatch.setattr(stacked, "twin_of", kind)
    pair, models = make_adapter_pair(tied=True, num_attention_heads=8, num_key_value_heads=2)
    engine = start(pair, max_num_batched_tokens=64)
    model = engine.apply_model(lambda model: [type(m) for m in model.modules()])
    assert kind in model[0]
    for seed, strengths in enumerate(([0], STRENGTHS, [0], STRENGTHS)):
        check_answers(engine, models, prompts(8, seed=seed), strengths=strengths)


@pytest.mark.parametrize("tied", [True, False])
def test_every_way_to_multiply_is_exact(
    start, make_adapter_pair, prompts, methods_of, product, tied
):
    # Qwen2 has biases; the widths end in the middle of a panel.
    pair, models = make_adapter_pair(architecture="qwen2", tied=tied, intermediate_size=70)
    engine = start(pair, max_num_batched_tokens=64)
    heads = {PackedHead} if product is PackedProduct else set()
    assert methods_of(engine) & {WidenedProduct, PackedProduct, PackedHead} == {product} | heads
    for seed, strengths in enumerate(([0], STRENGTHS, [0], STRENGTHS)):
        check_answers(engine, models, prompts(8, seed=seed), strengths=strengths)


def test_compiled_engine_is_exact(start, make_adapter_pair, prompts, product):
    pair, models = make_adapter_pair(tied=True)
    engine = start(pair, enforce_eager=False, max_num_seqs=8)
    check_answers(engine, models, prompts(8, seed=11))
    check_answers(engine, models, prompts(4, seed=12), strengths=[0])  # its own compiled body
    check_answers(engine, models, prompts(8, seed=13))


def test_two_ranks_are_exact(make_adapter_pair, prompts, child_engine):
    pair, models = make_adapter_pair(tied=False)
    asked = prompts(8, seed=13)
    answers = child_engine(
        pair,
        asked,
        STRENGTHS,
        environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        tensor_parallel_size=2,
    )
    for prompt, strength, tokens in zip(asked, STRENGTHS, answers["tokens"], strict=True):
        rows = exact_logprobs(models, prompt, tokens, strength)
        assert rows.argmax(-1).tolist() == tokens


def test_vllms_product_holds_the_weights_of_one_model(make_adapter_pair, monkeypatch, start):
    """Every weight that vLLM packs or keeps, counted when a layer gets its final form."""
    use_vllms_product(monkeypatch)
    pair, (base, _) = make_adapter_pair(tied=True, hidden_size=256, intermediate_size=1024)
    packed = []
    process = UnquantizedLinearMethod.process_weights_after_loading

    def counted(method, layer):
        packed.append(layer.weight.numel())
        process(method, layer)

    monkeypatch.setattr(UnquantizedLinearMethod, "process_weights_after_loading", counted)
    start(pair, dtype="float32")
    assert_one_model(sum(packed), base)


@pytest.mark.skipif(not RUNS_HERE, reason="the kernel's instructions are missing")
def test_our_product_holds_the_weights_of_one_model(make_adapter_pair, start):
    pair, (base, _) = make_adapter_pair(tied=True, hidden_size=256, intermediate_size=1024)
    engine = start(pair, dtype="float32")
    (held,) = engine.apply_model(
        lambda model: sum(
            tensor.numel() for name, tensor in model.named_parameters() if "_proj." in name
        )
    )
    assert_one_model(held, base)


def assert_one_model(held, base):
    plain = sum(weight.numel() for name, weight in base.named_parameters() if "_proj." in name)
    assert plain < held <= 1.1 * plain


def test_requests_at_strength_0_alone_compute_no_update(
    make_adapter_pair, monkeypatch, start, prompts, product
):
    pair, models = make_adapter_pair(tied=True)
    engine = start(pair)
    computed = []
    if product is PackedProduct:
        owner, name = kernel, "delta_linear"
    else:
        owner, name = UnquantizedLinearMethod, "apply"
    compute = getattr(owner, name)

    def noted(*args):
        # A is an argument of our product, and a layer of vLLM's.
        is_packed = product is PackedProduct
        computed.append(args[2] is not None if is_packed else isinstance(args[1], Down))
        return compute(*args)

    monkeypatch.setattr(owner, name, noted)
    check_answers(engine, models, prompts(4, seed=3), strengths=[0])
    assert computed and not any(computed)
    check_answers(engine, models, prompts(4, seed=3), strengths=[0, 1])
    assert any(computed)


def test_layers_without_an_update_are_computed_too(start, make_adapter_pair, prompts, product):
    pair, (base, _) = make_adapter_pair(tied=True, seed=3)
    directory = pair.rlvr.fetch()
    factors = {name: of for name, of in read_factors(directory).items() if "q_proj" in name}
    write_lora(directory, factors, scaling=1.0, dtype=torch.float32)
    merged = copy.deepcopy(base)
    for name, (up, down) in factors.items():
        merged.get_submodule(name).weight.data += up @ down
    check_answers(start(pair), (base, merged), prompts(8, seed=6))


def test_an_adapter_for_other_layers_is_refused(start, make_adapter_pair):
    pair, _ = make_adapter_pair(tied=False, seed=2)
    path = pair.rlvr.fetch() / "adapter_model.safetensors"
    renamed = {name.replace("layers.2.", "layers.9."): t for name, t in load_file(path).items()}
    save_file(renamed, path)
    with pytest.raises(ValueError, match="layers that the base has not.*layers.9"):
        start(pair)
