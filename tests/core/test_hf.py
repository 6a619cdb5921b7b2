"""Gates with transformers: the scores of every step are log q, whatever the options say."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlvr_decode import Extrapolation, hf
from rlvr_decode.kernels import gated_reference
from rlvr_decode.rules import rule_numbers, rule_of_rows
from rlvr_decode.sampling import Sampling
from rlvr_decode.testing import make_checkpoints

SETTINGS = [
    Extrapolation(strength=2, gate="delta", threshold=-0.2, primary="base"),
    Extrapolation(gate="delta", threshold=0.1),
    Extrapolation(strength=1, plausibility=0.1, gate="entropy", threshold=4.4, primary="base"),
    Extrapolation(strength=1, gate="random", threshold=0.3),
    Extrapolation(strength=1.5),
]
PROMPTS = torch.tensor([[0] * i + list(range(40 + 7 * i, 50 + 6 * i)) for i in range(5)])
SAMPLING = {"temperature": 0.8, "top_k": 60, "top_p": 0.9, "min_p": 0.004}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    paths = make_checkpoints(tmp_path_factory.mktemp("pair"), tied=False)
    return [AutoModelForCausalLM.from_pretrained(path).eval() for path in paths]


def generate(models, settings=SETTINGS, prompts=PROMPTS, **options):
    base, rlvr = models
    defaults = {"max_new_tokens": 4, "eos_token_id": None, "output_scores": True}
    torch.manual_seed(0)
    return hf.generate(
        rlvr,
        base,
        prompts,
        settings,
        attention_mask=(prompts > 0).int(),
        return_dict_in_generate=True,
        **(defaults | options),
    )


@torch.no_grad()
def expected(models, tokens, setting, **sampling):
    """log q [T, V] in float64 of the tokens after a prompt without padding."""
    tokens = tokens[int((tokens > 0).int().argmax()) :]
    logits_b, logits_r = (m(tokens[None]).logits[0, -5:-1].double() for m in models)
    numbers = torch.tensor(rule_numbers(setting, Sampling(**sampling)), dtype=torch.float64)
    rule = rule_of_rows(numbers[:, None].expand(-1, 4))
    return gated_reference.gated_extrapolate(logits_r, logits_b, rule).logprobs


def assert_scores(models, answer, settings, **sampling):
    for i, setting in enumerate(settings):
        scores = torch.stack([step[i] for step in answer.scores]).double()
        logq = expected(models, answer.sequences[i], setting, **sampling)
        torch.testing.assert_close(
            scores, logq, atol=1e-3, rtol=0, msg=lambda m, s=setting: f"{s}\n{m}"
        )
        drawn = answer.sequences[i, -4:]
        assert (logq.gather(1, drawn[:, None]) > -float("inf")).all()


def test_scores_are_log_q(models):
    answer = generate(models, do_sample=True, **SAMPLING)
    assert_scores(models, answer, SETTINGS, **SAMPLING)


def test_greedy_is_the_rules(models):
    answer = generate(models, do_sample=False)
    assert_scores(models, answer, SETTINGS, temperature=0.0)


def test_what_no_option_says_is_the_models_or_keeps_all(models, monkeypatch):
    answer = generate(models, do_sample=True)
    assert_scores(models, answer, SETTINGS)  # and not transformers' top_k of 50
    monkeypatch.setattr(models[1].generation_config, "temperature", 0.6)
    monkeypatch.setattr(models[1].generation_config, "top_k", 30)
    answer = generate(models, do_sample=True, top_k=20)
    assert_scores(models, answer, SETTINGS, temperature=0.6, top_k=20)


def test_without_a_gate_transformers_samples(models):
    answer = generate(models, [SETTINGS[-1]] * 5, do_sample=True, top_k=3)
    assert all((step > -float("inf")).sum(1).tolist() == [3] * 5 for step in answer.scores)


def test_a_mask_before_the_gate_is_refused(models):
    with pytest.raises(ValueError, match="a mask before the gate would change"):
        generate(models, do_sample=False, bad_words_ids=[[5]])


def test_sampling_settings_out_of_range_are_refused(models):
    with pytest.raises(ValueError, match="top_p=1.5: must be from 0 to 1"):
        generate(models, do_sample=True, top_p=1.5)
