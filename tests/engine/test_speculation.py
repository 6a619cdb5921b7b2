"""Drafted tokens are verified against the extrapolated distribution (V2), or refused (V1)."""

import pytest

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}


def test_speculation_is_exact_or_refused(pair, exact, child_engine, v2_runner):
    repetitive = [[40 + i, 50, 60, 50, 60, 50, 60, 50] * 4 for i in range(8)]
    strengths = [-1, 0, 0.5, 1, 1.5, 2, 3, 4]
    arguments = {"speculative_config": NGRAM, "sampling": {"max_tokens": 16}}
    if not v2_runner:
        with pytest.raises(RuntimeError, match="specul"):
            child_engine(pair, repetitive, strengths, **arguments)
        return
    answers = child_engine(pair, repetitive, strengths, **arguments)
    assert answers["metrics"]["vllm:spec_decode_num_accepted_tokens"] > 0
    for prompt, strength, tokens in zip(repetitive, strengths, answers["tokens"], strict=True):
        assert exact(prompt, tokens, strength).argmax(-1).tolist() == tokens
