"""Both models' view of a prompt's tokens, from the serving engine, against transformers'."""

from itertools import zip_longest

import pytest
import torch

from rlvr_decode import Extrapolation
from rlvr_decode.engine.prompt_scores import Scoring

NAMES = ["rlvr_logprob", "base_logprob", "delta", "rlvr_entropy", "base_entropy", "kl"]
TOP = 3


@pytest.fixture(scope="module")
def make_adapter_pair(tmp_path_factory):
    from transformers import AutoModelForCausalLM

    from rlvr_decode.pair import write_pair
    from rlvr_decode.testing import make_adapter, make_checkpoints

    directory = tmp_path_factory.mktemp("adapter")
    base, _ = make_checkpoints(directory, tied=False)
    adapter, merged = make_adapter(directory, base)
    pair = write_pair(directory, name="adapter", base=base, rlvr=adapter)
    return pair, [AutoModelForCausalLM.from_pretrained(path).eval() for path in (base, merged)]


@torch.no_grad()
def exact(models, tokens):
    """log p of both models after each token but the last, fp64 [2, T − 1, V]: base, rlvr."""
    tokens = torch.tensor([tokens])
    return torch.stack([m(tokens).logits[0, :-1].double().log_softmax(-1) for m in models])


def exact_values(models, tokens):
    base, rlvr = exact(models, tokens)
    chosen = torch.tensor(tokens[1:])[:, None]
    rlvr_logprob, base_logprob = (logp.gather(1, chosen)[:, 0] for logp in (rlvr, base))
    return {
        "rlvr_logprob": rlvr_logprob,
        "base_logprob": base_logprob,
        "delta": rlvr_logprob - base_logprob,
        "rlvr_entropy": -(rlvr.exp() * rlvr).sum(-1),
        "base_entropy": -(base.exp() * base).sum(-1),
        "kl": (rlvr.exp() * (rlvr - base)).sum(-1),
    }


def score(engine, prompts, others=(), **scoring):
    """The values of prompts scored in one batch with other requests."""
    from vllm import TokensPrompt

    keys = [f"key-{i}" for i in range(len(prompts))]
    for key in keys:
        engine.collective_rpc("open_side_channel", args=(key,))
    requests = [
        (prompt, Scoring(key=key, **scoring).sampling_params())
        for prompt, key in zip(prompts, keys, strict=True)
    ]
    mixed = [each for two in zip_longest(requests, others) for each in two if each]
    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt, _ in mixed]
    engine.generate(inputs, [params for _, params in mixed], use_tqdm=False)
    return [engine.collective_rpc("take_side_channel", args=(key,))[0] for key in keys]


def check(models, prompts, found):
    for prompt, values in zip(prompts, found, strict=True):
        if len(prompt) == 1:
            assert values == {}
            continue
        assert values["position"] == list(range(1, len(prompt)))
        for name, exactly in exact_values(models, prompt).items():
            assert torch.tensor(values[name]) == pytest.approx(exactly, abs=1e-3), name


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_values_are_transformers_in_chunks_among_other_traffic(start, request, prompts, kind):
    fixture = {"full": "pair_and_models", "adapter": "make_adapter_pair"}[kind]
    pair, models = request.getfixturevalue(fixture)
    engine = start(pair, max_num_batched_tokens=64, enable_chunked_prefill=True)
    scored, rest = prompts(6, seed=5), prompts(6, seed=6)
    others = [
        (prompt, Extrapolation(strength=i % 3).sampling_params(
            max_tokens=5, temperature=0, prompt_logprobs=2 if i % 3 == 0 else None))
        for i, prompt in enumerate(rest)
    ]  # fmt: skip
    check(models, scored, score(engine, scored, others))
    # Prefixes are in the cache now, and values are those of the whole prompt all the same.
    check(models, scored, score(engine, scored))


def test_preempted_prompts_are_whole(start, pair_and_models, prompts):
    pair, models = pair_and_models
    engine = start(pair, num_gpu_blocks_override=14, max_num_batched_tokens=96,
                   enable_chunked_prefill=True, max_model_len=256)  # fmt: skip
    scored = [prompt + prompt for prompt in prompts(10, seed=8)]
    scored = [prompt[:240] for prompt in scored]
    long = Extrapolation(strength=1).sampling_params(max_tokens=120, min_tokens=120)
    others = [(prompt[:40], long) for prompt in prompts(10, seed=9)]
    found = score(engine, scored, others)
    preempted = sum(m.value for m in engine.get_metrics() if m.name == "vllm:num_preemptions")
    assert preempted > 0
    for prompt, values in zip(scored, found, strict=True):
        last = {at: i for i, at in enumerate(values["position"])}
        assert sorted(last) == list(range(1, len(prompt)))
        for name, exactly in exact_values(models, prompt).items():
            got = torch.tensor([values[name][last[at]] for at in sorted(last)])
            assert got == pytest.approx(exactly, abs=1e-3), name


@pytest.fixture(scope="module")
def engine(start, pair):
    return start(pair)


def test_alternatives_are_the_most_likely_of_either_model(engine, pair_and_models, prompts):
    _, prompt = prompts(2, seed=3)
    [values] = score(engine, [prompt], top=TOP)
    base, rlvr = exact(pair_and_models[1], prompt)
    for name, logp in (("top_rlvr_logprobs", rlvr), ("top_base_logprobs", base)):
        chosen = logp.gather(1, torch.tensor(values["top_token_ids"]))
        assert torch.tensor(values[name]) == pytest.approx(chosen, abs=1e-3)
    expected = torch.cat([rlvr.topk(TOP).indices, base.topk(TOP).indices], dim=1)
    assert values["top_token_ids"] == expected.tolist()


@pytest.mark.parametrize("primary", ["rlvr", "base"])
def test_the_rate_of_the_delta_gate_is_the_primarys_mass_below(
    engine, pair_and_models, prompts, primary
):
    _, prompt = prompts(2, seed=4)
    [values] = score(engine, [prompt], gate="delta", threshold=-0.3, primary=primary)
    base, rlvr = exact(pair_and_models[1], prompt)
    drawn = rlvr if primary == "rlvr" else base
    mass = (drawn.exp() * (rlvr - base <= -0.3)).sum(-1)
    assert torch.tensor(values["rate"]) == pytest.approx(mass, abs=1e-3)


def test_the_rate_of_other_gates_is_whether_they_act(engine, pair_and_models, prompts):
    _, prompt = prompts(2, seed=4)
    kl = exact_values(pair_and_models[1], prompt)["kl"]
    threshold = kl.median().item() + 1e-4
    [values] = score(engine, [prompt], gate="kl", threshold=threshold)
    assert values["rate"] == (kl >= threshold).double().tolist()
    [values] = score(engine, [prompt], gate="random", threshold=0.25)
    assert values["rate"] == pytest.approx([0.25] * (len(prompt) - 1))


def test_a_key_that_nobody_opened_changes_nothing(engine, prompts):
    from vllm import TokensPrompt

    _, prompt = prompts(2)
    params = [Scoring(key="closed").sampling_params()]
    for hostile in ("text", {}, {"key": ["x"]}, {"key": "closed", "surprise": 1}):
        params.append(Scoring(key="closed").sampling_params())
        params[-1].extra_args = {"rlvr_decode_scoring": hostile}
    inputs = [TokensPrompt(prompt_token_ids=prompt)] * len(params)
    plain = engine.generate(inputs, params, use_tqdm=False)
    assert all(len(answer.prompt_logprobs) == len(prompt) for answer in plain)
    assert engine.collective_rpc("take_side_channel", args=("closed",)) == [{}]
