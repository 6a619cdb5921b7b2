"""A full pair, extracted to an adapter pair, answers in the engine like the full one."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlvr_decode import Extrapolation, Pair
from rlvr_decode.deltas import Criterion
from rlvr_decode.extract import extract, write
from rlvr_decode.fidelity import make_probe
from rlvr_decode.pair import write_pair
from rlvr_decode.testing import make_adapter, make_checkpoints


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    directory = tmp_path_factory.mktemp("full")
    base, _ = make_checkpoints(directory)
    _, merged = make_adapter(directory, base, rank=16, scale=0.05)
    return write_pair(directory, name="full", base=base, rlvr=merged)


def test_no_greedy_token_differs_from_the_full_pair(start, full, prompts, tmp_path):
    from vllm import TokensPrompt

    probe = make_probe(full, samples=4, max_tokens=16)
    write(extract(full, probe, criterion=Criterion(rank=16)), tmp_path / "low")
    pair = Pair.open(tmp_path / "low", verify=True)
    assert pair.rlvr.kind == "adapter"
    asked, strengths = prompts(6), [-1, 0, 0.5, 1, 2, 4]
    params = [
        Extrapolation(strength=strength).sampling_params(
            temperature=0, max_tokens=6, ignore_eos=True, logprobs=1
        )
        for strength in strengths
    ]
    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in asked]
    answers = start(pair).generate(inputs, params, use_tqdm=False)
    base, rlvr = (
        AutoModelForCausalLM.from_pretrained(each.fetch()).eval() for each in (full.base, full.rlvr)
    )
    for prompt, strength, answer in zip(asked, strengths, answers, strict=True):
        (output,) = answer.outputs
        tokens = torch.tensor([list(prompt) + list(output.token_ids)])
        with torch.no_grad():
            logits = [model(tokens).logits[0].double().log_softmax(-1) for model in (base, rlvr)]
        mixed = ((1 + strength) * logits[1] - strength * logits[0]).log_softmax(-1)
        rows = mixed[len(prompt) - 1 : -1]
        assert rows.argmax(-1).tolist() == list(output.token_ids)
        for row, token, logprobs in zip(rows, output.token_ids, output.logprobs, strict=True):
            assert abs(logprobs[token].logprob - row[token].item()) < 2e-3
