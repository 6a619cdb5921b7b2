"""Prompts read once give the log-probs and gradients of prompts read with every response."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlvr_decode.training.config import Architecture
from rlvr_decode.training.policy.logprobs import response_logprobs
from rlvr_decode.training.policy.model import new_model
from rlvr_decode.training.policy.prefix import responses_per_prompt
from rlvr_decode.training.rollout.rollout import TransformersRollout

MICRO = Architecture(hidden=32, layers=2, heads=2, kv_heads=1, head=16, intermediate=48)
PROMPTS = ["say ", "say say say ", "say say "]


@pytest.fixture
def sampled():
    """A float64 model and rollouts that are padded on both sides: 3 prompts × 4 responses."""
    model, tokenizer = new_model(MICRO, seed=3)
    engine = TransformersRollout(model=model, tokenizer=tokenizer)
    rollouts = engine.sample(PROMPTS, group=4, max_new_tokens=7, temperature=1.0, seed=5)
    rollouts.mask_BT[::3, 4:] = False
    return model.double(), rollouts


def gradient(model, rollouts, **options):
    """log p, and the gradient of a sum of log p and entropies that no symmetry cancels."""
    logp_BT, entropy_BT = response_logprobs(
        model, rollouts, temperature=0.7, entropy=True, **options
    )
    weight_BT = rollouts.response_BT.sin() + 2
    loss = (weight_BT * (logp_BT + 0.3 * entropy_BT)).sum()
    return logp_BT, torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("options", [{}, {"max_logits": 500, "kept_logits": 1000}])
@pytest.mark.parametrize("padded", [True, False])
def test_sharing_changes_nothing(sampled, padded, options):
    model, rollouts = sampled
    rows = torch.arange(12) if padded else torch.arange(4, 8)
    shared = rollouts.select(rows)
    assert responses_per_prompt(shared) == 4
    logp_BT, gradients = gradient(model, shared, **options)

    parts = [
        gradient(model, shared.select(torch.tensor([row])), **options) for row in range(len(rows))
    ]
    torch.testing.assert_close(logp_BT, torch.cat([logp for logp, _ in parts]))
    for mine, *each in zip(gradients, *(g for _, g in parts), strict=True):
        torch.testing.assert_close(mine, torch.stack(each).sum(0), rtol=1e-4, atol=1e-5)


def test_one_token_is_predicted_from_the_prompt_alone(sampled):
    model, rollouts = sampled
    first = replace(
        rollouts, response_BT=rollouts.response_BT[:, :1], mask_BT=rollouts.mask_BT[:, :1]
    )
    whole, _ = response_logprobs(model, rollouts, temperature=1.0)
    torch.testing.assert_close(response_logprobs(model, first, temperature=1.0)[0], whole[:, :1])


@pytest.mark.parametrize(
    ("rows", "group"),
    [([0, 1, 4, 5], 2), ([0, 1, 4], 1), ([0, 4, 1, 5], 1), ([0, 1, 2], 3), ([0], 1)],
)
def test_only_equal_groups_side_by_side_are_shared(sampled, rows, group):
    _, rollouts = sampled
    assert responses_per_prompt(rollouts.select(torch.tensor(rows))) == group


def test_gradient_checkpointing_shares_nothing_and_agrees(sampled):
    model, rollouts = sampled
    _, expected = gradient(model, rollouts)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    for mine, theirs in zip(gradient(model, rollouts)[1], expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
