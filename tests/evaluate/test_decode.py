"""Drawing with transformers: the distribution of every step, against the kernels' definition."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlvr_decode.evaluate.decode import Recipe, decode
from rlvr_decode.kernels import reference
from rlvr_decode.params import Extrapolation
from rlvr_decode.sampling import Sampling
from rlvr_decode.testing import make_checkpoints

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    paths = make_checkpoints(tmp_path_factory.mktemp("pair"), update=0.05)
    base, rlvr = (AutoModelForCausalLM.from_pretrained(path) for path in paths)
    return rlvr, base


def run(models, recipe, *, seed=0, max_tokens=12, prompts=PROMPTS):
    return decode(*models, prompts, recipe, stop=[2], max_tokens=max_tokens, seed=seed)


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0].double()


def recipe(**settings):
    sampling = Sampling(**settings.pop("sampling", {}))
    return Recipe(extrapolation=Extrapolation(**settings), sampling=sampling)


@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.7])
def test_greedy_tokens_are_the_definitions_in_a_padded_batch(models, strength):
    drawn = run(models, recipe(strength=strength, sampling={"temperature": 0.0}))
    rlvr, base = models
    for prompt, each in zip(PROMPTS, drawn, strict=True):
        ids = [*prompt, *each.tokens]
        row = torch.ones(len(ids), dtype=torch.float64)
        z = reference.extrapolate(logits(rlvr, ids), logits(base, ids), strength * row, 0 * row)
        assert z[len(prompt) - 1 : -1].argmax(-1).tolist() == each.tokens
        assert each.entropy == 0.0 and each.finished == (each.tokens[-1] == 2)


def test_entropy_and_rate_are_those_of_the_distribution_drawn_from(models):
    rlvr, base = models
    gated = recipe(gate="delta", threshold=-0.2, primary="base")
    for prompt, each in zip(PROMPTS, run(models, gated), strict=True):
        ids = [*prompt, *each.tokens]
        p, r = (logits(model, ids)[len(prompt) - 1 : -1].softmax(-1) for model in (base, rlvr))
        thrown = (r / p).log() <= -0.2
        m = (p * thrown).sum(-1)
        q = p * ~thrown + m[:, None] * r
        assert each.rate == pytest.approx(m.mean().item(), abs=1e-5)
        assert each.entropy == pytest.approx(-(q * q.log()).sum(-1).mean().item(), abs=1e-4)


def test_a_seed_repeats_and_another_does_not(models):
    plain = recipe(strength=0.5)
    assert run(models, plain, seed=4) == run(models, plain, seed=4) != run(models, plain, seed=5)


def test_a_shuffled_delta_is_as_large_and_elsewhere(models):
    """The control's push has the same sizes, so greedy tokens differ from those along Δ."""
    permutation = torch.randperm(509, generator=torch.Generator().manual_seed(0))
    along = recipe(strength=5.0, sampling={"temperature": 0.0})
    shuffled = Recipe(
        extrapolation=along.extrapolation, sampling=along.sampling, permutation=permutation
    )
    rlvr, base = models
    [each] = run(models, shuffled, prompts=PROMPTS[:1])
    ids = [*PROMPTS[0], *each.tokens]
    logp_r, logp_b = (logits(model, ids).log_softmax(-1)[2:-1] for model in (rlvr, base))
    z = logp_r + 5 * (logp_r - logp_b)[:, permutation]
    assert z.argmax(-1).tolist() == each.tokens
    assert run(models, along, prompts=PROMPTS[:1])[0].tokens != each.tokens


def test_a_prompt_without_room_is_refused(models):
    with pytest.raises(ValueError, match="max_tokens=3000: the longest prompt leaves room for 20"):
        run(models, recipe(), max_tokens=3000)
