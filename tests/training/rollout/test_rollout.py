"""Rollouts: the log-probs they carry are the model's, and nothing depends on the batch."""

import pytest
import torch

from rlvr_decode.training.policy.logprobs import response_logprobs
from rlvr_decode.training.policy.model import open_model
from rlvr_decode.training.rollout.padding import positions
from rlvr_decode.training.rollout.rollout import TransformersRollout, draw

PROMPTS = ["1+1=?\n", "a much longer prompt than that\n", "?"]


@pytest.fixture
def engine(micro_base):
    model, tokenizer = open_model(micro_base)
    return TransformersRollout(model=model, tokenizer=tokenizer)


def sample(engine, prompts=PROMPTS, *, group=16, tokens=24, temperature=1.0, seed=0, first=0):
    return engine.sample(
        prompts, group=group, max_new_tokens=tokens, temperature=temperature, seed=seed, first=first
    )


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["padded", "unpadded"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_sampled_logprobs_are_the_teacher_forced_ones(engine, prompts, temperature):
    rollouts = sample(engine, prompts, temperature=temperature)
    assert 0 < rollouts.finished_B.sum() < len(rollouts.finished_B)
    with torch.no_grad():
        logp_BT, _ = response_logprobs(engine.model, rollouts, temperature=temperature)
    assert rollouts.logp_BT[rollouts.mask_BT].max() < 0
    torch.testing.assert_close(rollouts.logp_BT, logp_BT, rtol=0, atol=1e-5)


def test_logprobs_do_not_depend_on_the_neighbours(engine):
    rollouts = sample(engine)
    row = 20
    prompt = rollouts.prompt_BP[row][rollouts.prompt_mask_BP[row]]
    response = rollouts.response_BT[row][rollouts.mask_BT[row]]
    with torch.no_grad():
        logits = engine.model(input_ids=torch.cat([prompt, response])[None]).logits[0]
    alone = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(-1, response[:, None])[:, 0]
    torch.testing.assert_close(
        rollouts.logp_BT[row][rollouts.mask_BT[row]], alone, rtol=0, atol=1e-5
    )


def test_entropy_is_that_of_the_distribution(engine):
    rollouts = sample(engine, temperature=0.5)
    with torch.no_grad():
        found = response_logprobs(engine.model, rollouts, temperature=0.5, entropy=True)
        row = engine.model(input_ids=rollouts.prompt_BP[-1:][rollouts.prompt_mask_BP[-1:]][None])
    expected = torch.distributions.Categorical(logits=row.logits[0, -1] / 0.5).entropy()
    torch.testing.assert_close(found.entropy_BT[-1, 0], expected, rtol=0, atol=1e-5)
    assert (found.entropy_BT[~rollouts.mask_BT] == 0).all()


def test_responses_end_at_their_first_end_of_sequence(engine):
    rollouts = sample(engine, group=64, tokens=40)
    eos = engine.tokenizer.eos_token_id
    for response, mask, finished in zip(
        rollouts.response_BT, rollouts.mask_BT, rollouts.finished_B, strict=True
    ):
        length = int(mask.sum())
        assert mask[:length].all() and (response[length:] == engine.tokenizer.pad_token_id).all()
        assert (response[: length - 1] != eos).all()
        assert bool(finished) == bool(response[length - 1] == eos)
        assert finished or length == 40


def test_the_seed_decides(engine):
    first, again, other = (sample(engine, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.response_BT, again.response_BT)
    assert first.texts == again.texts != other.texts


def test_a_batch_can_be_divided(engine):
    """Whether one process samples or three, each prompt gets the same responses."""
    whole = sample(engine, seed=5)
    parts = [sample(engine, PROMPTS[i : i + 1], seed=5, first=i) for i in range(3)]
    assert whole.texts == [text for part in parts for text in part.texts]
    assert len(set(whole.texts)) > 40


def test_greedy_is_the_most_likely_token(engine):
    rollouts = sample(engine, group=1, temperature=0.0)
    with torch.no_grad():
        ids = torch.cat([rollouts.prompt_BP, rollouts.response_BT], 1)
        mask = torch.cat([rollouts.prompt_mask_BP, rollouts.mask_BT], 1)
        logits = engine.model(input_ids=ids, **positions(mask)).logits
    best = logits[:, rollouts.prompt_BP.shape[1] - 1 : -1].argmax(-1)
    assert torch.equal(best[rollouts.mask_BT], rollouts.response_BT[rollouts.mask_BT])


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, float("-inf")])
    generator = torch.Generator().manual_seed(0)
    token_N, logp_N = draw(logits.expand(200_000, -1), 0.8, [(generator, 200_000)])
    expected = (logits / 0.8).softmax(-1)
    counts = torch.bincount(token_N, minlength=5)
    # Pearson's χ² with three degrees of freedom exceeds 16.3 once in a thousand.
    chi2 = ((counts - 200_000 * expected)[:4] ** 2 / (200_000 * expected[:4])).sum()
    assert counts[4] == 0 and chi2 < 16.3
    torch.testing.assert_close(logp_N, expected.log()[token_N])


def test_select_keeps_rows_together(engine):
    rollouts = sample(engine)
    some = rollouts.select(torch.tensor([5, 0]))
    assert some.texts == [rollouts.texts[5], rollouts.texts[0]]
    assert torch.equal(some.logp_BT, rollouts.logp_BT[[5, 0]])


def test_a_model_that_never_stops_is_refused(engine):
    engine.model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="has no eos_token_id"):
        sample(engine)


def test_more_tokens_than_positions_are_refused(engine):
    with pytest.raises(ValueError, match="=225: the longest prompt leaves room for 224"):
        sample(engine, tokens=225)
