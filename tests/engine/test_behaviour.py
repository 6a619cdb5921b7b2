"""What vLLM promises its users holds for the extrapolated distribution: every feature, mixed."""

import re

import pytest
import torch
from scipy.stats import chi2

from rlvr_decode import Extrapolation

PROMPT = list(range(40, 60))


@pytest.fixture(scope="module")
def engine(start, pair):
    # One prompt per step fits whole; V1 on a CPU dies on seeded prompts cut into chunks.
    return start(pair, max_num_batched_tokens=2048)


def ask(engine, prompts, params):
    from vllm import TokensPrompt

    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    return engine.generate(inputs, params, use_tqdm=False)


def settings(strength, plausibility=0.0, **params):
    chosen = Extrapolation(strength=strength, plausibility=plausibility)
    return chosen.sampling_params(**({"max_tokens": 8, "ignore_eos": True} | params))


DRAWS = 1500


def far_apart(observed, expected):
    """By χ² of counts, rare tokens as one."""
    common = expected > 10
    observed, expected = (
        torch.cat([counts[common], counts[~common].sum()[None]]) for counts in (observed, expected)
    )
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    return statistic > chi2.ppf(1 - 1e-5, df=len(expected) - 1)


@pytest.mark.parametrize("strength", [-1, 0, 1.5])
def test_samples_follow_the_exact_distribution(engine, exact, strength):
    params = settings(strength, temperature=1, max_tokens=1, n=100)
    answers = ask(engine, [PROMPT] * (DRAWS // 100), params)
    tokens = [output.token_ids[0] for answer in answers for output in answer.outputs]
    expected = DRAWS * exact(PROMPT, [0], strength)[0].exp()
    observed = torch.bincount(torch.tensor(tokens), minlength=len(expected))[: len(expected)]
    assert len(tokens) == DRAWS and not far_apart(observed, expected)


def test_the_sampling_test_can_tell_strengths_apart(exact):
    counts = [DRAWS * exact(PROMPT, [0], strength)[0].exp() for strength in (1.2, 1.5)]
    assert far_apart(*counts)


@pytest.mark.parametrize("strength", [0, -1])
def test_the_endpoints_are_rlvr_and_base(engine, pair_and_models, strength):
    base, rlvr = pair_and_models[1]
    model = rlvr if strength == 0 else base
    (answer,) = ask(engine, [PROMPT], settings(strength, temperature=0, logprobs=20))
    tokens = torch.tensor([PROMPT + list(answer.outputs[0].token_ids)])
    with torch.no_grad():
        expected = model(tokens).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    for row, logprobs in zip(expected, answer.outputs[0].logprobs, strict=True):
        assert len(logprobs) >= 20
        for token, logprob in logprobs.items():
            assert abs(logprob.logprob - row[token].item()) < 1e-4


def test_a_request_gets_the_same_answer_alone_and_in_a_batch(engine, prompts):
    asked = prompts(16, seed=3)
    params = [settings(s / 4 - 1, temperature=0, logprobs=1) for s in range(16)]
    together = ask(engine, asked, params)
    for prompt, param, batched in zip(asked, params, together, strict=True):
        (alone,) = ask(engine, [prompt], param)
        assert alone.outputs[0].token_ids == batched.outputs[0].token_ids
        assert alone.outputs[0].cumulative_logprob == pytest.approx(
            batched.outputs[0].cumulative_logprob, abs=1e-4
        )


def test_plausibility_cuts_what_rlvr_finds_implausible(engine, exact):
    params = settings(3, plausibility=0.5, temperature=1, max_tokens=1, n=100)
    (answer,) = ask(engine, [PROMPT], params)
    rlvr = exact(PROMPT, [0], 0)[0].exp()
    plausible = set(torch.nonzero(rlvr >= 0.5 * rlvr.max()).flatten().tolist())
    drawn = {output.token_ids[0] for output in answer.outputs}
    assert drawn <= plausible < set(range(509))


def test_a_mask_may_forbid_every_plausible_token(engine, exact):
    """What a grammar leaves is drawn in rlvr's order, not refused for being implausible."""
    unlikely = exact(PROMPT, [0], 0)[0].argsort()[:3].tolist()
    params = settings(
        3, plausibility=0.9, temperature=0, max_tokens=1, allowed_token_ids=sorted(unlikely)
    )
    (answer,) = ask(engine, [PROMPT], params)
    assert answer.outputs[0].token_ids[0] == unlikely[-1]


def test_logprobs_are_those_of_the_distribution_sampled_from(engine, exact, v2_runner):
    # Triton's interpreter cannot run V2's top-p kernel.
    truncation = {} if v2_runner else {"top_p": 0.9}
    (answer,) = ask(engine, [PROMPT], settings(2, temperature=1, logprobs=5, **truncation))
    (output,) = answer.outputs
    expected = exact(PROMPT, output.token_ids, 2)
    for row, token, logprobs in zip(expected, output.token_ids, output.logprobs, strict=True):
        assert logprobs[token].logprob == pytest.approx(row[token].item(), abs=1e-3)


@pytest.mark.parametrize("strength", [-1, 0, 3])
def test_grammar_holds_at_every_strength(engine, strength):
    from vllm.sampling_params import StructuredOutputsParams

    grammar = StructuredOutputsParams(regex=r"[0-9]{3}-(yes|no)")
    params = settings(
        strength, temperature=1, max_tokens=20, n=8, ignore_eos=False, structured_outputs=grammar
    )
    (answer,) = ask(engine, [PROMPT], params)
    for output in answer.outputs:
        assert re.fullmatch(r"[0-9]{3}-(yes|no)", output.text)


@pytest.mark.parametrize("strength", [-1, 2])
def test_logit_bias_acts_on_the_extrapolated_logits(engine, exact, strength):
    first = exact(PROMPT, [0], strength)[0]
    winner, runner_up = first.topk(2).indices.tolist()
    gap = (first[winner] - first[runner_up]).item()
    for bias, expected in ((gap - 1e-2, winner), (gap + 1e-2, runner_up)):
        params = settings(strength, temperature=0, max_tokens=1, logit_bias={runner_up: bias})
        (answer,) = ask(engine, [PROMPT], params)
        assert answer.outputs[0].token_ids[0] == expected


def test_penalties_act_on_the_extrapolated_logits(engine, exact):
    (answer,) = ask(engine, [PROMPT], settings(2, temperature=0, presence_penalty=2.0))
    seen = set()
    tokens = answer.outputs[0].token_ids
    for row, token in zip(exact(PROMPT, tokens, 2), tokens, strict=True):
        row[list(seen)] -= 2.0
        assert row.argmax().item() == token
        seen.add(token)


def test_seeds_repeat_and_differ(engine):
    params = [settings(1, temperature=1, max_tokens=16, seed=seed) for seed in (7, 7, 8)]
    first, again, other = (a.outputs[0].token_ids for a in ask(engine, [PROMPT] * 3, params))
    assert first == again != other


def test_n_answers_share_a_strength(engine, exact):
    (answer,) = ask(engine, [PROMPT], settings(-1, temperature=1, n=4, logprobs=0))
    assert len(answer.outputs) == 4
    for output in answer.outputs:
        rows = exact(PROMPT, output.token_ids, -1)
        for row, token, logprobs in zip(rows, output.token_ids, output.logprobs, strict=True):
            assert logprobs[token].logprob == pytest.approx(row[token].item(), abs=1e-3)


def test_stop_strings_end_an_extrapolated_answer(engine):
    (free,) = ask(engine, [PROMPT], settings(2, temperature=0, max_tokens=12))
    text = free.outputs[0].text
    stop = text[len(text) // 2 :][:2]
    (stopped,) = ask(engine, [PROMPT], settings(2, temperature=0, max_tokens=12, stop=[stop]))
    assert stopped.outputs[0].text == text[: text.index(stop)]
    assert stopped.outputs[0].finish_reason == "stop"


def test_prompt_logprobs_are_rlvrs_beside_extrapolated_requests(engine, exact):
    params = [settings(0, prompt_logprobs=1, temperature=0), settings(2, temperature=0)]
    plain, mixed = ask(engine, [PROMPT, PROMPT], params)
    expected = exact(PROMPT[:1], PROMPT[1:], 0)
    for row, token, logprobs in zip(expected, PROMPT[1:], plain.prompt_logprobs[1:], strict=True):
        assert logprobs[token].logprob == pytest.approx(row[token].item(), abs=1e-4)
    tokens = mixed.outputs[0].token_ids
    assert exact(PROMPT, tokens, 2).argmax(-1).tolist() == list(tokens)


@pytest.mark.parametrize(
    "extra_args, named",
    [
        ({"extrapolation_strength": 99}, "extrapolation_strength=99: must be from -1 to 10"),
        ({"extrapolation_strength": float("nan")}, "extrapolation_strength=nan"),
        ({"extrapolation_strength": True}, "extrapolation_strength=True"),
        ({"extrapolation_strength": "1"}, "extrapolation_strength='1'"),
        ({"extrapolation_plausibility": 1.1}, "extrapolation_plausibility=1.1: must be from 0 to"),
        ({"extrapolation_gate": "sometimes"}, "extrapolation_gate='sometimes'"),
        ({"extrapolation_strenght": 1}, "extrapolation_strenght=1: unknown setting"),
        ({"extrapolation": 1}, "extrapolation=1: use extrapolation_strength"),
    ],
)
def test_malformed_settings_are_refused_at_admission(engine, extra_args, named):
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=named):
        ask(engine, [PROMPT], SamplingParams(extra_args=extra_args))


def test_prompt_logprobs_of_an_extrapolated_request_are_refused(engine):
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="log-probs of the prompt are rlvr's"):
        ask(engine, [PROMPT], settings(1, prompt_logprobs=1))


def test_other_plugins_keep_their_arguments(engine, exact):
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0, max_tokens=4, ignore_eos=True, extra_args={"someone_elses": "value"}
    )
    (answer,) = ask(engine, [PROMPT], params)
    tokens = answer.outputs[0].token_ids
    assert exact(PROMPT, tokens, 0).argmax(-1).tolist() == list(tokens)


def test_preempted_requests_keep_their_strength(start, pair, exact, prompts):
    small = start(
        pair,
        max_model_len=256,
        num_gpu_blocks_override=20,
        max_num_batched_tokens=64,
        enable_chunked_prefill=True,
    )
    asked = [prompt[:100] for prompt in prompts(12, seed=5)]
    strengths = [i / 3 - 1 for i in range(12)]
    params = [settings(s, temperature=0, max_tokens=40) for s in strengths]
    answers = ask(small, asked, params)
    preemptions = sum(m.value for m in small.get_metrics() if m.name == "vllm:num_preemptions")
    assert preemptions > 0
    for prompt, strength, answer in zip(asked, strengths, answers, strict=True):
        tokens = answer.outputs[0].token_ids
        assert exact(prompt, tokens, strength).argmax(-1).tolist() == list(tokens)


def test_slots_are_reused_with_the_next_requests_strength(engine, exact):
    """Many more requests than slots, of uneven lengths, so that rows move and slots recycle."""
    strengths = [(i * 5 % 21) / 4 - 1 for i in range(96)]
    params = [settings(s, temperature=0, max_tokens=1 + i % 7) for i, s in enumerate(strengths)]
    asked = [[3 + i, *PROMPT] for i in range(96)]
    for prompt, strength, answer in zip(asked, strengths, ask(engine, asked, params), strict=True):
        tokens = answer.outputs[0].token_ids
        assert exact(prompt, tokens, strength).argmax(-1).tolist() == list(tokens)


def test_padded_vocabularies_are_never_sampled(start, make_pair):
    pair, _ = make_pair(base_vocab=523, tied=True)
    engine = start(pair, max_num_batched_tokens=2048)
    params = settings(4, temperature=1, n=64, max_tokens=4)
    (answer,) = ask(engine, [PROMPT], params)
    assert max(token for output in answer.outputs for token in output.token_ids) < 509
