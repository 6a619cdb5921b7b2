"""Gated requests in the engine: drawn as the papers' loop draws, beside others that are not."""

import pytest
import torch
from scipy.stats import chi2

from rlvr_decode import Extrapolation
from rlvr_decode.interventions import intervention_rates
from rlvr_decode.kernels import gated_reference
from rlvr_decode.ops import Rule
from rlvr_decode.params import PRIMARIES, TICKET
from rlvr_decode.rules import rule_numbers, rule_of_rows
from rlvr_decode.sampling import Sampling

# Thresholds at which the random pair's positions fall on both sides.
THRESHOLDS = {
    "delta": -0.1,
    "kl": 0.06,
    "reverse_kl": 0.06,
    "jsd": 0.015,
    "entropy": 4.5,
    "random": 0.4,
}
GATED = [
    Extrapolation(strength=strength, gate=gate, threshold=THRESHOLDS.get(gate), primary=primary)
    for gate, strength in (
        ("delta", 2),
        ("delta", 0),
        ("kl", 1),
        ("reverse_kl", 3),
        ("jsd", 0.5),
        ("entropy", 2),
        ("random", 4),
        ("all", 1.5),
    )
    for primary in PRIMARIES
]
MIXED = [*GATED, Extrapolation(strength=2), Extrapolation(), Extrapolation(strength=-1)]
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.005}
PROMPT = list(range(40, 60))


@pytest.fixture(scope="module")
def engine(start, pair):
    # Prompts fit whole; V1 on a CPU dies on seeded prompts cut into chunks.
    return start(pair, max_num_batched_tokens=2048)


def ask(engine, prompts, params):
    from vllm import TokensPrompt

    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    return engine.generate(inputs, params, use_tqdm=False)


@pytest.fixture(scope="module")
def exact_rule(pair_and_models):
    """(log q [T, V], m [T]) of the tokens that follow a prompt, in float64."""
    base, rlvr = pair_and_models[1]

    @torch.no_grad()
    def rule(prompt, response, setting, bias=None, **sampling):
        tokens = torch.tensor([list(prompt) + list(response)])
        log_b, log_r = (m(tokens).logits[0, len(prompt) - 1 : -1].double() for m in (base, rlvr))
        numbers = torch.tensor(rule_numbers(setting, Sampling(**sampling)), dtype=torch.float64)
        rows = rule_of_rows(numbers[:, None].expand(-1, len(response)))
        return gated_reference.gated_extrapolate(log_r, log_b, Rule(*rows), bias)

    return rule


def test_greedy_tokens_are_those_of_transformers(engine, pair_and_models, prompts):
    from rlvr_decode import hf

    base, rlvr = pair_and_models[1]
    asked = [prompt[:90] for prompt in prompts(len(MIXED), seed=4)]
    params = [s.sampling_params(temperature=0, max_tokens=8, ignore_eos=True) for s in MIXED]
    # A random redraw is no greedy one.
    certain = [i for i, setting in enumerate(MIXED) if setting.gate != "random"]
    answers = ask(engine, asked, params)
    longest = max(map(len, asked))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in asked])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in asked])
    expected = hf.generate(
        rlvr,
        base,
        padded[certain],
        [MIXED[i] for i in certain],
        attention_mask=mask[certain],
        do_sample=False,
        max_new_tokens=8,
        eos_token_id=None,
    )[:, longest:]
    for i, tokens in zip(certain, expected.tolist(), strict=True):
        assert list(answers[i].outputs[0].token_ids) == tokens, MIXED[i]
