"""A transformers model as a generator: what is pooled, batching, and two tokenizers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlvr_decode.testing import make_checkpoints
from rlvr_decode.training.policy.model import open_model
from rlvr_decode.training.soe.generator import TransformersGenerator
from rlvr_decode.training.tasks.task import Prompt

PREFIXES = ["12+34=?\n", "5+6=?\n1+1", "7"]
CONTINUATIONS = ["2+4+0=06", "x", ",3+1"]


@pytest.fixture(scope="module")
def characters(micro_base):
    """A micro model whose tokens are characters."""
    return open_model(micro_base)


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory):
    """A micro model of another architecture whose tokens are bytes."""
    path, _ = make_checkpoints(tmp_path_factory.mktemp("bytes"), architecture="llama")
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def test_the_mean_is_over_the_continuations_tokens(characters) -> None:
    model, tokenizer = characters
    for layer in (-1, 1):
        pooled_ND = TransformersGenerator(model, tokenizer, layer=layer).hidden(
            PREFIXES, CONTINUATIONS
        )
        for pooled_D, prefix, continuation in zip(pooled_ND, PREFIXES, CONTINUATIONS, strict=True):
            ids = tokenizer(prefix + continuation, return_tensors="pt").input_ids
            with torch.no_grad():
                hidden_TD = model(ids, output_hidden_states=True).hidden_states[layer][0]
            expected_D = hidden_TD[-len(continuation) :].double().mean(0)
            torch.testing.assert_close(pooled_D, expected_D, rtol=1e-5, atol=1e-5)


def test_batching_changes_nothing(byte_pairs) -> None:
    whole = TransformersGenerator(*byte_pairs, batch=64).hidden(PREFIXES, CONTINUATIONS)
    single = TransformersGenerator(*byte_pairs, batch=1).hidden(PREFIXES, CONTINUATIONS)
    torch.testing.assert_close(whole, single, rtol=1e-5, atol=1e-5)


def test_both_kinds_of_tokens_continue_the_same_text(characters, byte_pairs) -> None:
    for model in (characters, byte_pairs):
        generator = TransformersGenerator(*model, batch=4)
        settings = {"n": 3, "max_tokens": 6, "temperature": 1.0}
        samples = generator.generate(PREFIXES, seed=1, **settings)
        assert [len(row) for row in samples] == [3, 3, 3]
        assert samples == generator.generate(PREFIXES, seed=1, **settings)
        assert samples != generator.generate(PREFIXES, seed=2, **settings)
        assert all(any(sample.text for sample in row) for row in samples)


def test_unfinished_continuations_say_so(characters) -> None:
    generator = TransformersGenerator(*characters)
    samples = generator.generate(["1+"] * 40, n=2, max_tokens=40, temperature=1.0, seed=0)
    flat = [sample for row in samples for sample in row]
    # One character per token; a random model now and then writes a special one, which is no text.
    assert min(len(s.text) for s in flat if s.finished) < 30
    assert min(len(s.text) for s in flat if not s.finished) > 30
    assert max(len(s.text) for s in flat) <= 40


def test_nothing_to_generate_is_nothing(characters) -> None:
    generator = TransformersGenerator(*characters)
    assert generator.generate([], n=2, max_tokens=4, temperature=1.0, seed=0) == []


def test_an_empty_continuation_is_refused(characters) -> None:
    with pytest.raises(ValueError, match="continuation '' has no tokens"):
        TransformersGenerator(*characters).hidden(["1+", "2+"], ["3", ""])


def test_a_chat_is_read_in_the_models_own_template(characters) -> None:
    model, tokenizer = characters
    chat = Prompt(text="user: 1+2=?", answer="3", messages=(("user", "1+2=?"),))
    generator = TransformersGenerator(model, tokenizer)
    assert generator.render(chat) == "1+2=?\n"
    assert generator.render(Prompt(text="1+2=?", answer="3")) == "1+2=?"
