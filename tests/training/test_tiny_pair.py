"""The pair that ships: intact, as its recipe says, and extrapolation does to it what we claim."""

import math
import statistics
from itertools import pairwise

import pytest
import torch

from rlvr_decode import Extrapolation
from rlvr_decode.hf import generate
from rlvr_decode.pair import Pair
from rlvr_decode.training.config import load
from rlvr_decode.training.policy.model import open_model
from rlvr_decode.training.tasks.addition import Addition, is_shortcut

STRENGTHS = (-1.0, 0.0, 1.0, 3.0)
PROMPTS = 400


@pytest.fixture(scope="module")
def pair():
    return Pair.open("tiny", verify=True)


@pytest.fixture(scope="module")
def responses(pair):
    """A sampled response to each of 400 held-out prompts at each strength, and its reward."""
    rlvr, tokenizer = open_model(pair.rlvr.fetch())
    base, _ = open_model(pair.base.fetch())
    task = Addition()
    prompts = [task.prompt(i, seed=77, split="held_out") for i in range(PROMPTS)]
    torch.manual_seed(0)
    tokens = generate(
        rlvr,
        base,
        torch.tensor([tokenizer.encode(p.text) for p in prompts]).repeat(len(STRENGTHS), 1),
        [Extrapolation(strength=s, plausibility=0.05) for s in STRENGTHS for _ in prompts],
        do_sample=True,
        top_k=0,
        max_new_tokens=40,
    )
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    texts = [text.partition("\n")[2] for text in texts]
    rewards = [task.reward(p, t) for p, t in zip(prompts * len(STRENGTHS), texts, strict=True)]
    return {
        strength: (texts[i * PROMPTS :][:PROMPTS], rewards[i * PROMPTS :][:PROMPTS])
        for i, strength in enumerate(STRENGTHS)
    }


def test_it_is_what_the_recipe_makes(pair):
    recipe = load("tiny")
    assert pair.defaults == recipe.defaults == Extrapolation(strength=1.0, plausibility=0.05)
    assert (pair.provenance["recipe"], pair.provenance["seed"]) == (recipe.name, recipe.seed)
    assert pair.provenance["pretrain_steps"] == recipe.pretrain.steps
    accuracies = pair.provenance["accuracies"]
    assert accuracies["base"]["held_out"] < 0.45 < accuracies["rlvr"]["held_out"] < 0.6
    names = [sorted(f.name for f in half.fetch().iterdir()) for half in (pair.base, pair.rlvr)]
    assert names[0] == names[1]


def test_shortcuts_fall_with_strength(responses):
    shares = [statistics.fmean(map(is_shortcut, responses[s][0])) for s in STRENGTHS]
    assert shares[0] > 0.5 and shares[-1] < 0.05
    assert all(more > less + 0.02 for more, less in pairwise(shares))


def test_strength_one_is_more_accurate_than_rlvr(responses):
    """Paired by prompt, by more than three standard errors; 12 to 25 points are usual."""
    gains = [b - a for a, b in zip(responses[0.0][1], responses[1.0][1], strict=True)]
    error = statistics.stdev(gains) / math.sqrt(PROMPTS)
    assert statistics.fmean(gains) > 3 * error
    assert statistics.fmean(responses[-1.0][1]) < statistics.fmean(responses[0.0][1])
