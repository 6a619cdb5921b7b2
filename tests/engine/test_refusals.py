"""What a pair cannot do exactly stops the engine at its start, with the reason."""

import pytest


def start_error(start, pair, **arguments):
    with pytest.raises(Exception) as caught:  # vLLM wraps some in types of its own
        start(pair, **arguments)
    return str(caught.value)


def test_pipeline_parallelism_is_refused(start, pair):
    message = start_error(start, pair, pipeline_parallel_size=2)
    assert "pipeline" in message.lower()


def test_prompt_embeddings_are_refused(start, pair):
    assert "prompt embed" in start_error(start, pair, enable_prompt_embeds=True).lower()


def test_an_adapter_on_top_is_refused(start, pair):
    assert "--enable-lora" in start_error(start, pair, enable_lora=True)


def test_pooling_is_refused(start, pair):
    assert "pool" in start_error(start, pair, runner="pooling").lower()


def test_what_makes_the_pair_is_not_overridden(start, pair):
    message = start_error(start, pair, hf_overrides={}, model="other")
    assert message == "hf_overrides, model: set by the pair, leave out; serve another pair"


def test_an_engine_without_the_processor_is_refused(pair):
    from vllm import LLM

    from rlvr_decode.engine.launch import engine_args

    arguments = engine_args(pair, enforce_eager=True, max_model_len=256) | {"logits_processors": []}
    with pytest.raises(ValueError, match="requests would not be validated"):
        LLM(**arguments)
