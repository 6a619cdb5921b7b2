"""Drafted tokens are verified against the extrapolated distribution (V2), or refused (V1)."""

import pytest

from rlvr_decode import Extrapolation

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}


GATED = [
    Extrapolation(strength=2, gate="delta", threshold=-0.1, primary="base"),
    Extrapolation(strength=1, gate="jsd", threshold=0.24),
]


def test_speculation_is_exact_or_refused(pair, exact, child_engine, v2_runner):
    repetitive = [[40 + i, 50, 60, 50, 60, 50, 60, 50] * 4 for i in range(8)]
    settings = [-1, 0, *GATED, 1.5, 2, 3, 4]
    arguments = {"speculative_config": NGRAM, "sampling": {"max_tokens": 16}}
    if not v2_runner:
        with pytest.raises(RuntimeError, match="specul"):
            child_engine(pair, repetitive, settings, **arguments)
        return
    answers = child_engine(pair, repetitive, settings, **arguments)
    assert answers["metrics"]["vllm:spec_decode_num_accepted_tokens"] > 0
    for prompt, setting, tokens in zip(repetitive, settings, answers["tokens"], strict=True):
        assert exact(prompt, tokens, setting).argmax(-1).tolist() == tokens


def test_a_draft_model_changes_no_token(pair, exact, child_engine, prompts, v2_runner):
    """Rlvr alone drafts, base and rlvr verify; vLLM ships this for V2 only."""
    draft = {"method": "draft_model", "model": str(pair.rlvr.fetch()), "num_speculative_tokens": 3}
    asked = prompts(8, seed=17)
    settings = [Extrapolation(strength=strength) for strength in (-1, 0, 0.25, 0.5, 1, 2, 3)]
    settings.append(GATED[0])
    arguments = {"speculative_config": draft, "sampling": {"max_tokens": 12}}
    if not v2_runner:
        with pytest.raises(RuntimeError, match="specul"):
            child_engine(pair, asked, settings, **arguments)
        return
    answers = child_engine(pair, asked, settings, **arguments)
    drafted = answers["metrics"]["vllm:spec_decode_num_draft_tokens"]
    assert 0 < answers["metrics"]["vllm:spec_decode_num_accepted_tokens"] < drafted
    for prompt, setting, tokens in zip(asked, settings, answers["tokens"], strict=True):
        assert exact(prompt, tokens, setting).argmax(-1).tolist() == tokens
