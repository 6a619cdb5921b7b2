"""Gated requests in the engine: drawn as the papers' loop draws, beside others that are not."""

import re
from functools import partial

import pytest
import torch
from scipy.stats import chi2
from transformers import AutoModelForCausalLM

from rlvr_decode import Extrapolation, hf
from rlvr_decode.interventions import intervention_rates
from rlvr_decode.kernels import gated_reference
from rlvr_decode.pair import write_pair
from rlvr_decode.params import PRIMARIES, TICKET
from rlvr_decode.rules import rule_numbers, rule_of_rows
from rlvr_decode.sampling import Sampling
from rlvr_decode.testing import make_adapter, make_checkpoints

# Thresholds at which the random pair's positions fall on both sides.
THRESHOLDS = {
    "delta": -0.1,
    "kl": 1.25,
    "reverse_kl": 1.25,
    "jsd": 0.24,
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


@pytest.fixture(scope="module", params=["full", "adapter"])
def served(request, start, tmp_path_factory):
    """An engine on a pair of either form, and the pair's transformers models."""
    if request.param == "full":
        return request.getfixturevalue("engine"), request.getfixturevalue("pair_and_models")[1]
    directory = tmp_path_factory.mktemp("adapter")
    base, _ = make_checkpoints(directory)
    adapter, merged = make_adapter(directory, base)
    pair = write_pair(directory, name="adapter", base=base, rlvr=adapter)
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (base, merged)]
    return start(pair, max_num_batched_tokens=2048), models


@torch.no_grad()
def rule_by(models, prompt, response, setting, bias=None, **sampling):
    """(log q [T, V], m [T]) of the tokens that follow a prompt, in float64."""
    tokens = torch.tensor([list(prompt) + list(response)])
    logits_b, logits_r = (m(tokens).logits[0, len(prompt) - 1 : -1].double() for m in models)
    numbers = torch.tensor(rule_numbers(setting, Sampling(**sampling)), dtype=torch.float64)
    rule = rule_of_rows(numbers[:, None].expand(-1, len(response)))
    return gated_reference.gated_extrapolate(logits_r, logits_b, rule, bias)


@pytest.fixture(scope="module")
def exact_rule(pair_and_models):
    return partial(rule_by, pair_and_models[1])


def test_greedy_tokens_are_those_of_transformers(served, prompts):
    engine, (base, rlvr) = served
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


def test_logprobs_and_rates_are_those_of_the_rule(served, prompts):
    """Drawn with truncation: the log-probs are log q, and the tokens are of its support."""
    engine, models = served
    asked = [prompt[:90] for prompt in prompts(len(GATED), seed=5)]
    params = [
        setting.sampling_params(
            **SAMPLING,
            seed=i,
            max_tokens=8,
            ignore_eos=True,
            logprobs=5,
            extra_args={TICKET: f"rates-{i}"},
        )
        for i, setting in enumerate(GATED)
    ]
    for i, answer in enumerate(ask(engine, asked, params)):
        (output,) = answer.outputs
        logq, m = rule_by(models, asked[i], output.token_ids, GATED[i], **SAMPLING)
        for row, logprobs in zip(logq, output.logprobs, strict=True):
            for token, logprob in logprobs.items():
                expected = row[token].item()
                assert logprob.logprob == pytest.approx(expected, abs=1e-3), GATED[i]
        (told,) = engine.collective_rpc("take_side_channel", args=(f"rates-{i}",))
        assert intervention_rates(told) == pytest.approx(m.tolist(), abs=1e-3), GATED[i]


def test_positions_fall_on_both_sides_of_the_thresholds(exact_rule, prompts):
    """Else the tests here would not see a gate that is always open, or never."""
    text = prompts(2, seed=7)[1]
    for setting in GATED:
        if setting.gate not in ("random", "all"):
            m = exact_rule(text[:20], text[20:], setting).rate
            assert m.min() < m.max(), setting


@pytest.mark.parametrize(
    "setting", [GATED[1], GATED[12]], ids=lambda setting: f"{setting.gate}-{setting.primary}"
)
def test_samples_follow_the_rule(engine, exact_rule, setting):
    count = 2000
    sampling = {"temperature": 1.3, "top_p": 0.95}
    params = setting.sampling_params(**sampling, max_tokens=1, n=100)
    answers = ask(engine, [PROMPT] * (count // 100), params)
    tokens = [output.token_ids[0] for answer in answers for output in answer.outputs]
    q = exact_rule(PROMPT, [0], setting, **sampling).logprobs[0].exp()
    assert chi_square(tokens, q) < 1
    # The test could tell it from the rule without a gate.
    other = exact_rule(PROMPT, [0], Extrapolation(), **sampling).logprobs[0].exp()
    assert chi_square(tokens, other) > 2


def chi_square(tokens, q):
    """Pearson's statistic over its critical value at one in 100 000."""
    expected = len(tokens) * q
    common = expected > 10
    observed = torch.bincount(torch.tensor(tokens), minlength=len(q))[: len(q)]
    observed = torch.cat([observed[common], observed[~common].sum()[None]]).double()
    expected = torch.cat([expected[common], expected[~common].sum()[None]]).clamp(min=1e-9)
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    return statistic / chi2.ppf(1 - 1e-5, df=len(expected) - 1)


def test_rows_without_a_gate_do_not_notice(engine, prompts):
    asked = [prompt[:90] for prompt in prompts(6, seed=6)]
    settings = [Extrapolation(strength=strength) for strength in (-1, 0, 0.5, 1, 2, 3)]
    params = [s.sampling_params(temperature=0, max_tokens=6, logprobs=3) for s in settings]
    alone = ask(engine, asked, params)
    others = [s.sampling_params(max_tokens=6, logit_bias={7: 1.0}) for s in GATED[:5]]
    others += [s.sampling_params(max_tokens=6, temperature=0.5) for s in GATED[:5]]
    mixed = ask(engine, asked + [PROMPT] * 10, params + others)[:6]
    for before, after in zip(alone, mixed, strict=True):
        assert before.outputs[0].token_ids == after.outputs[0].token_ids
        assert before.outputs[0].cumulative_logprob == pytest.approx(
            after.outputs[0].cumulative_logprob, abs=1e-4
        )


def test_seeds_repeat_whatever_is_in_the_batch(engine, prompts):
    params = [
        setting.sampling_params(**SAMPLING, seed=7, max_tokens=12, ignore_eos=True)
        for setting in GATED
    ]
    together = ask(engine, [PROMPT] * len(GATED), params)
    for setting, param, answer in zip(GATED[::5], params[::5], together[::5], strict=True):
        (alone,) = ask(engine, [PROMPT], param)
        assert alone.outputs[0].token_ids == answer.outputs[0].token_ids, setting
    other = GATED[0].sampling_params(**SAMPLING, seed=8, max_tokens=12, ignore_eos=True)
    (answer,) = ask(engine, [PROMPT], other)
    assert answer.outputs[0].token_ids != together[0].outputs[0].token_ids


@pytest.mark.parametrize("setting", GATED[:2] + GATED[-2:-1], ids=str)
def test_masks_are_known_to_both_draws(engine, exact_rule, setting):
    """Masked after the fact, the rule would have other probabilities, or none at all."""
    logq = exact_rule(PROMPT, [0], setting, temperature=0).logprobs[0]
    never = (logq == -float("inf")).nonzero().flatten()[::50].tolist()
    bias = torch.full((1, 509), -float("inf"), dtype=torch.float64)
    bias[0, never] = 0
    masked = exact_rule(PROMPT, [0], setting, bias, temperature=0).logprobs[0]
    params = setting.sampling_params(temperature=0, max_tokens=1, allowed_token_ids=never)
    (answer,) = ask(engine, [PROMPT], params)
    assert answer.outputs[0].token_ids[0] == masked.argmax().item()


@pytest.mark.parametrize("setting", [GATED[1], GATED[12]], ids=str)
def test_samples_follow_the_rule_under_a_bias(engine, exact_rule, setting):
    sampling = {"temperature": 0.9, "top_p": 0.8}
    favoured = exact_rule(PROMPT, [0], setting).logprobs[0].argsort()[-40::4].tolist()
    bias = torch.zeros(1, 509, dtype=torch.float64)
    bias[0, favoured] = 2.0
    params = setting.sampling_params(
        **sampling, max_tokens=1, n=100, logit_bias=dict.fromkeys(favoured, 2.0)
    )
    answers = ask(engine, [PROMPT] * 15, params)
    tokens = [output.token_ids[0] for answer in answers for output in answer.outputs]
    q = exact_rule(PROMPT, [0], setting, bias, **sampling).logprobs[0].exp()
    assert chi_square(tokens, q) < 1
    # Added after the rule, as vLLM adds it to others, it would be seen.
    late = exact_rule(PROMPT, [0], setting, **sampling).logprobs + bias
    assert chi_square(tokens, late.softmax(-1)[0]) > 2


@pytest.mark.parametrize("setting", [GATED[0], GATED[1], GATED[12]], ids=str)
def test_a_grammar_holds(engine, setting):
    from vllm.sampling_params import StructuredOutputsParams

    grammar = StructuredOutputsParams(regex=r"[0-9]{3}-(yes|no)")
    params = setting.sampling_params(
        temperature=1, top_k=5, max_tokens=20, n=8, structured_outputs=grammar
    )
    (answer,) = ask(engine, [PROMPT], params)
    for output in answer.outputs:
        assert re.fullmatch(r"[0-9]{3}-(yes|no)", output.text)


def test_min_tokens_holds(engine, exact_rule):
    likely = exact_rule(PROMPT, [0], GATED[1]).logprobs[0].argsort()[-100:].tolist()
    settings = {"temperature": 0, "max_tokens": 6, "stop_token_ids": likely}
    params = [GATED[1].sampling_params(**settings, min_tokens=least) for least in (0, 6)]
    free, held = (answer.outputs[0].token_ids for answer in ask(engine, [PROMPT] * 2, params))
    assert (len(free), len(held)) == (1, 6)
    assert not set(held[:5]) & set(likely)


def test_slots_are_reused_with_the_next_requests_rule(engine, exact_rule):
    """More requests than slots, gated or not, masked or not: rows move, slots recycle."""
    certain = [setting for setting in MIXED if setting.gate != "random"]
    settings = [certain[i * 7 % len(certain)] for i in range(48)]
    masks = [{"bad_words": ["w300"]} if i % 3 == 0 else {} for i in range(48)]
    params = [
        setting.sampling_params(temperature=0, max_tokens=1 + i % 5, ignore_eos=True, **masks[i])
        for i, setting in enumerate(settings)
    ]
    asked = [[3 + i, *PROMPT] for i in range(48)]
    for i, answer in enumerate(ask(engine, asked, params)):
        tokens = answer.outputs[0].token_ids
        logq = exact_rule(asked[i], tokens, settings[i], temperature=0).logprobs
        assert logq.argmax(-1).tolist() == list(tokens), settings[i]


def test_preempted_requests_keep_their_rule(start, pair, exact_rule, prompts):
    small = start(
        pair,
        max_model_len=256,
        num_gpu_blocks_override=20,
        max_num_batched_tokens=64,
        enable_chunked_prefill=True,
    )
    asked = [prompt[:100] for prompt in prompts(12, seed=5)]
    settings = [setting for setting in MIXED if setting.gate != "random"][:12]
    params = [
        setting.sampling_params(
            temperature=0, max_tokens=40, ignore_eos=True, extra_args={TICKET: str(i)}
        )
        for i, setting in enumerate(settings)
    ]
    answers = ask(small, asked, params)
    preemptions = sum(m.value for m in small.get_metrics() if m.name == "vllm:num_preemptions")
    assert preemptions > 0
    for i, (prompt, setting, answer) in enumerate(zip(asked, settings, answers, strict=True)):
        tokens = answer.outputs[0].token_ids
        logq, m = exact_rule(prompt, tokens, setting, temperature=0)
        assert logq.argmax(-1).tolist() == list(tokens)
        (told,) = small.collective_rpc("take_side_channel", args=(str(i),))
        assert sorted(intervention_rates(told)) == pytest.approx(sorted(m.tolist()), abs=1e-3)


REFUSED = [
    ({"temperature": 0.7}, "temperature=0.7: would act on top .* use extrapolation_temperature"),
    ({"temperature": 0}, "temperature=0: would act on top"),
    ({"top_p": 0.9}, "top_p=0.9: would act on top"),
    ({"top_k": 5}, "top_k=5: would act on top"),
    ({"min_p": 0.1}, "min_p=0.1: would act on top"),
    ({"repetition_penalty": 1.1}, "repetition_penalty=1.1: would act on top"),
    ({"presence_penalty": 0.1}, "presence_penalty=0.1: would act on top"),
    ({"frequency_penalty": 0.1}, "frequency_penalty=0.1: would act on top"),
    ({"prompt_logprobs": 1}, "extrapolation_gate='delta': log-probs of the prompt"),
    ({"logprobs": 1, "logit_bias": {5: 1.0}}, "logprobs=1: would miss the mask .*logit_bias"),
    ({"logprobs": 0, "min_tokens": 2}, "logprobs=0: would miss the mask .*min_tokens"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_would_act_beside_the_gate_is_refused_by_name(engine, settings, message):
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=message):
        ask(engine, [PROMPT], SamplingParams(extra_args=GATED[0].to_extra_args(), **settings))


@pytest.mark.parametrize(
    ("extra_args", "message"),
    [
        ({"extrapolation_temperature": 0.5}, "extrapolation_temperature=0.5: is for a request wi"),
        ({"extrapolation_gate": "kl"}, "extrapolation_threshold=None: gate kl needs a number"),
        ({"extrapolation_gate": "all", "extrapolation_temperature": 3}, "must be from 0 to 2"),
        ({"extrapolation_gate": "all", "extrapolation_top_p": 0}, "extrapolation_top_p=0: must be"),
        ({"extrapolation_gate": "all", "extrapolation_top_k": 1.5}, "must be a whole number"),
    ],
)
def test_malformed_rules_are_refused_at_admission(engine, extra_args, message):
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=message):
        ask(engine, [PROMPT], SamplingParams(extra_args=extra_args))
