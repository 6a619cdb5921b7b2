"""The bundled language model, from an empty cache to answers that are transformers' own."""

import pytest
import torch

from rlvr_decode import Extrapolation, Pair
from rlvr_decode.evaluate.with_transformers import open_models
from rlvr_decode.hf import generate

QUESTIONS = ("Calculate 57 - 43.\nAnswer with only the number.", "What is the capital of France?")
TOKENS = 16


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Fetched anew; its base's hash is checked on the way."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        pair = Pair.open("smollm2", verify=True)
        yield pair


@torch.no_grad()
def exact(models, prompt, strength):
    """Greedy tokens of two models in float32, the adapter merged into one of them."""
    tokens = generate(
        models.rlvr,
        models.base,
        torch.tensor([prompt]),
        Extrapolation(strength=strength),
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=list(models.stop),
    )
    return tokens[0, len(prompt) :].tolist()


def test_no_greedy_token_differs_at_three_strengths(start, pair):
    from vllm import TokensPrompt

    engine = start(pair, dtype="float32", max_model_len=256)
    models = open_models(pair)
    asked = [(question, strength) for question in QUESTIONS for strength in (-1.0, 0.0, 1.0)]
    turns = [[{"role": "user", "content": question}] for question, _ in asked]
    texts = models.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    prompts = [models.tokenizer.encode(text) for text in texts]
    params = [
        Extrapolation(strength=strength).sampling_params(temperature=0, max_tokens=TOKENS)
        for _, strength in asked
    ]
    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    answers = engine.generate(inputs, params, use_tqdm=False)
    said = [list(answer.outputs[0].token_ids) for answer in answers]
    assert said == [
        exact(models, prompt, strength)
        for prompt, (_, strength) in zip(prompts, asked, strict=True)
    ]
    assert said[0] != said[1]  # the adapter has changed the answer to the sum
