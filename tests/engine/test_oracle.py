"""The engine against transformers' own two-model processor, over many mixed requests."""

import pytest
import torch
from transformers import LogitsProcessorList, UnbatchedClassifierFreeGuidanceLogitsProcessor

from rlvr_decode import Extrapolation

STRENGTHS = [-1, -0.75, -0.5, -0.25, 0, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4]
NEW = 6


def ask(engine, prompts, strengths, **settings):
    from vllm import TokensPrompt

    params = [
        Extrapolation(strength=strength).sampling_params(
            temperature=0, max_tokens=NEW, ignore_eos=True, logprobs=3, **settings
        )
        for strength in strengths
    ]
    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    return [answer.outputs[0] for answer in engine.generate(inputs, params, use_tqdm=False)]


def guided(models, prompt, strength):
    """Greedy tokens and their score rows from transformers; base is the unconditional model."""
    base, rlvr = models
    prompt = torch.tensor([prompt])
    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(
        1 + strength, base, unconditional_ids=prompt
    )
    answer = rlvr.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        logits_processor=LogitsProcessorList([processor]),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = torch.cat(answer.scores).log_softmax(dim=-1)
    return answer.sequences[0, prompt.shape[1] :].tolist(), scores


def count_wrong_tokens(answers, models, prompts, strengths):
    wrong = 0
    for answer, prompt, strength in zip(answers, prompts, strengths, strict=True):
        tokens, scores = guided(models, prompt, strength)
        wrong += sum(a != b for a, b in zip(answer.token_ids, tokens, strict=True))
        for row, logprobs in zip(scores, answer.logprobs, strict=True):
            for token, logprob in logprobs.items():
                assert abs(logprob.logprob - row[token].item()) < 1e-3
    return wrong


@pytest.mark.parametrize(
    "architecture, tied, count",
    [("qwen3", False, 208), ("qwen3", True, 32), ("qwen2", True, 32), ("llama", False, 32)],
)
def test_no_greedy_token_differs(start, make_pair, prompts, architecture, tied, count):
    pair, models = make_pair(architecture=architecture, tied=tied)
    engine = start(pair, max_num_batched_tokens=64, enable_chunked_prefill=True)
    asked = prompts(count)
    strengths = [STRENGTHS[i * 7 % len(STRENGTHS)] for i in range(count)]
    answers = ask(engine, asked, strengths)
    assert count_wrong_tokens(answers, models, asked, strengths) == 0
    hits = sum(m.value for m in engine.get_metrics() if m.name == "vllm:prefix_cache_hits")
    assert hits > 0  # base's half of the shared blocks was reused as well
