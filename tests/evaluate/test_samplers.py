"""The engines agree: vLLM in this process and transformers, on greedy tokens and on averages."""

import statistics

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlvr_decode.evaluate.arms import Arm, control
from rlvr_decode.evaluate.variants import variant_of
from rlvr_decode.evaluate.with_transformers import TransformersSampler, open_models
from rlvr_decode.evaluate.with_vllm import VllmSampler
from rlvr_decode.pair import Pair, write_pair
from rlvr_decode.params import Extrapolation
from rlvr_decode.testing import make_adapter, make_checkpoints
from rlvr_decode.training.tasks.addition import Addition
from rlvr_decode.training.tasks.task import Prompt

GATED = Extrapolation(strength=0.5, gate="delta", threshold=-0.3, primary="base")


@pytest.fixture(scope="module")
def samplers():
    pair = Pair.open("tiny")
    engine = VllmSampler(pair, max_tokens=40, enforce_eager=True, dtype="float32")
    yield engine, TransformersSampler(open_models(pair), max_tokens=40, batch=64)
    engine.close()


@pytest.fixture(scope="module")
def questions():
    task = Addition()
    sums = [task.prompt(index, seed=3, split="held_out") for index in range(40)]
    chats = [Prompt(text=p.text, answer=p.answer, messages=(("user", p.text[:-1]),)) for p in sums]
    return sums[:20] + chats[20:]


@pytest.mark.parametrize("setting", [Extrapolation(strength=1.0, plausibility=0.05), GATED])
def test_greedy_answers_are_the_same(samplers, questions, setting):
    arm = Arm(extrapolation=setting, temperature=0.0)
    ours, theirs = (
        sampler.sample(questions, arm, samples=1, seed=0) for sampler in samplers
    )  # fmt: skip
    for (one,), (other,) in zip(ours, theirs, strict=True):
        assert (one.text, one.length, one.finished) == (other.text, other.length, other.finished)
        assert one.entropy == other.entropy == 0.0


@pytest.mark.parametrize(
    "arm",
    [
        Arm(extrapolation=GATED),
        Arm(extrapolation=Extrapolation(strength=0.5), temperature=0.7, top_p=0.9),
        Arm(min_p=0.05),
    ],
)
def test_averages_agree(samplers, questions, arm):
    means = []
    for sampler in samplers:
        found = [r for some in sampler.sample(questions, arm, samples=8, seed=1) for r in some]
        assert all(response.finished for response in found)
        rates = [response.rate for response in found]
        means.append(
            {
                "length": statistics.fmean(response.length for response in found),
                "entropy": statistics.fmean(response.entropy for response in found),
                "rate": statistics.fmean(rates) if arm.extrapolation.gated else 0.0,
            }
        )
        assert arm.extrapolation.gated or rates == [None] * len(rates)
    ours, theirs = means
    # 320 responses of 26 ± 6 tokens, correlated within a prompt.
    assert ours["length"] == pytest.approx(theirs["length"], abs=2.0)
    assert ours["entropy"] == pytest.approx(theirs["entropy"], abs=0.015)
    assert ours["rate"] == pytest.approx(theirs["rate"], abs=0.015)
    assert theirs["entropy"] > 0.01


@torch.no_grad()
def test_the_controls_base_is_as_far_and_elsewhere(tmp_path):
    base, rlvr = make_checkpoints(tmp_path)
    adapter, merged = make_adapter(tmp_path, base)
    for number, (after, full) in enumerate([(rlvr, rlvr), (adapter, merged)]):
        pair = write_pair(tmp_path / f"pair{number}", name="pair", base=base, rlvr=after)
        arm = control(Arm(extrapolation=Extrapolation(strength=1.0)), "update")
        variant = variant_of(pair, arm, tmp_path / f"variant{number}")
        weights = [
            dict(AutoModelForCausalLM.from_pretrained(directory).named_parameters())
            for directory in (base, full, variant.base.fetch(), variant.rlvr.fetch())
        ]
        old, new, shuffled, same = weights
        for name in old:
            torch.testing.assert_close(same[name], new[name], atol=1e-5, rtol=1e-5)
            update, push = (new[name] - start[name] for start in (old, shuffled))
            torch.testing.assert_close(push.norm(), update.norm(), atol=1e-4, rtol=1e-3)
            if update.norm() > 0:
                assert torch.cosine_similarity(push.flatten(), update.flatten(), dim=0).abs() < 0.1


def test_the_weights_rival_moves_on_by_its_strength(tmp_path):
    base, rlvr = make_checkpoints(tmp_path)
    pair = write_pair(tmp_path / "pair", name="pair", base=base, rlvr=rlvr)
    variant = variant_of(pair, Arm(variant="weights", weight_strength=0.5), tmp_path / "variant")
    old, new, moved = (
        AutoModelForCausalLM.from_pretrained(directory).get_parameter("model.embed_tokens.weight")
        for directory in (base, rlvr, variant.rlvr.fetch())
    )
    torch.testing.assert_close(moved, new + 0.5 * (new - old))
