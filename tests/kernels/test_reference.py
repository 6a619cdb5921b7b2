"""The definition against hand-computed numbers, theory, and another project's formula."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor

from rlvr_decode.kernels.reference import DeltaLogprobs, delta_logprobs, extrapolate

INF = float("inf")


def logs(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def settings(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_tilts_by_the_ratio_of_the_models():
    # p_r²/p_b = .36/.5, .09/.25, .01/.25 = .72, .36, .04; their sum is 1.12.
    z = extrapolate(logs([0.6, 0.3, 0.1]), logs([0.5, 0.25, 0.25]), settings(1.0), settings(0.0))
    expected = torch.tensor([[0.72, 0.36, 0.04]], dtype=torch.float64) / 1.12
    torch.testing.assert_close(z.softmax(-1), expected)
    # The logits too, not only what is drawn: penalties act on their signs.
    assert z[0, 0].item() == pytest.approx(math.log(0.6) + math.log(0.6 / 0.5))


def test_plausibility_cuts_only_beyond_rlvr():
    r = logs([0.6, 0.3, 0.07, 0.03]).expand(4, -1)
    b = logs([0.25, 0.25, 0.25, 0.25]).expand(4, -1)
    z = extrapolate(r, b, settings(1.0, 0.0, -0.5, 1.0), settings(0.1, 0.1, 0.1, 1.0))
    assert z.isfinite().tolist() == [
        [True, True, True, False],  # 0.1 · 0.6 lies between 0.07 and 0.03
        [True, True, True, True],
        [True, True, True, True],
        [True, False, False, False],
    ]


def test_minus_infinity():
    both, only_r, only_b, neither = range(4)
    r = torch.tensor([-INF, -INF, 1.0, 2.0]).expand(5, -1)
    b = torch.tensor([-INF, 0.5, -INF, 0.5]).expand(5, -1)
    z = extrapolate(r, b, torch.tensor([2.0, 0.5, -0.5, -1.0, 0.0]), torch.zeros(5))
    assert (z[:, [both, only_r]] == -INF).all()
    assert z[:2, only_b].tolist() == [1.0, 1.0]
    assert z[2:4, only_b].tolist() == [-INF, -INF]
    assert z[:, neither].isfinite().all()
    assert torch.equal(z[4], r[4])


def test_rows_without_any_token():
    nothing, something = torch.full((3, 4), -INF), torch.randn(3, 4)
    strength, plausibility = torch.tensor([1.0, 0.0, -1.0]), torch.full((3,), 0.1)
    assert (extrapolate(nothing, something, strength, plausibility) == -INF).all()
    z = extrapolate(something, nothing, strength, torch.zeros(3))
    assert torch.equal(z[:2], something[:2])
    assert (z[2] == -INF).all()


@pytest.mark.parametrize("poison", [math.nan, INF])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_no_distribution_shows(poison, which):
    inputs = [torch.randn(3, 6), torch.randn(3, 6)]
    inputs[which][:, 2] = poison
    z = extrapolate(*inputs, torch.tensor([1.0, -0.5, 0.0]), torch.tensor([0.2, 0.0, 0.0]))
    assert z[0].isnan().any() and not z[0].isfinite().any()
    assert z[1].isnan().all()
    assert torch.equal(z[2].nan_to_num(), inputs[0][2].nan_to_num())


def test_padding_of_either_vocabulary():
    r, b = torch.randn(2, 5).double(), torch.randn(2, 7).double()
    strength, plausibility = settings(0.7, 0.0), settings(0.0, 0.0)
    z = extrapolate(r, b, strength, plausibility)
    torch.testing.assert_close(z, extrapolate(r, b[:, :5], strength, plausibility))
    z = extrapolate(b, r, strength, plausibility)
    torch.testing.assert_close(z[0, :5], extrapolate(b[:, :5], r, strength, plausibility)[0])
    assert (z[0, 5:] == -INF).all()
    assert torch.equal(z[1], b[1])


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 0.1, 1.0, 4.0])
def test_is_the_formula_of_classifier_free_guidance(strength):
    r, b = torch.randn(1, 300).double() * 4, torch.randn(1, 300).double() * 4

    class Unconditional:
        def __call__(self, ids, **_):
            return type("Output", (), {"logits": b[:, None], "get": lambda *_: None})()

    guide = UnbatchedClassifierFreeGuidanceLogitsProcessor(
        1 + strength, Unconditional(), torch.tensor([[1]]), use_cache=False
    )
    z = extrapolate(r, b, settings(strength), settings(0.0))
    expected = guide(torch.tensor([[1]]), r).log_softmax(-1)
    torch.testing.assert_close(z.log_softmax(-1), expected, rtol=0, atol=1e-12)


@given(
    rewards=st.lists(st.integers(0, 1), min_size=2, max_size=8).filter(lambda r: len(set(r)) > 1),
    steps=st.integers(1, 5),
    strength=st.floats(-1, 3).filter(bool),  # at 0 the row is copied, and has no slope
)
def test_expected_reward_grows_by_its_covariance_with_delta(rewards, steps, strength):
    # Natural policy gradient on a bandit adds η · advantage to the logits at every step.
    reward = torch.tensor(rewards, dtype=torch.float64)
    base = torch.linspace(-1, 1, len(rewards), dtype=torch.float64)
    rlvr = base
    for _ in range(steps):
        rlvr = rlvr + 0.2 * (reward - rlvr.softmax(-1) @ reward)

    strength = settings(strength).requires_grad_()
    policy = extrapolate(rlvr[None], base[None], strength, settings(0.0)).softmax(-1)[0]
    (slope,) = torch.autograd.grad(policy @ reward, strength)
    delta = rlvr.log_softmax(-1) - base.log_softmax(-1)
    covariance = policy @ (reward * delta) - (policy @ reward) * (policy @ delta)
    torch.testing.assert_close(slope[0], covariance)
    assert slope > 0


def test_delta_logprobs_by_hand():
    r, b = logs([0.5, 0.5, 0.0, 0.0]), logs([0.25, 0.25, 0.5, 0.0])
    result = delta_logprobs(r, b, torch.tensor([[0, 2, 3, 4, -1]]))
    ln2 = math.log(2)
    expected = DeltaLogprobs(
        rlvr=[[-ln2, -INF, -INF, math.nan, math.nan]],
        base=[[-2 * ln2, -ln2, -INF, math.nan, math.nan]],
        delta=[[ln2, -INF, 0.0, math.nan, math.nan]],
        rlvr_entropy=[ln2],
        base_entropy=[1.5 * ln2],
        kl=[ln2],
    )
    for value, wanted in zip(result, expected, strict=True):
        wanted = torch.tensor(wanted, dtype=torch.float64)
        torch.testing.assert_close(value, wanted, equal_nan=True)


def test_kl_is_infinite_where_rlvr_leaves_base():
    r, b = torch.zeros(2, 3), torch.zeros(2, 3)
    b[0, 1] = -INF
    r[0, 1] = -200.0  # p underflows in float32, and is above zero all the same
    assert delta_logprobs(r, b, torch.tensor([1, 1])).kl.tolist() == [INF, 0.0]
    assert delta_logprobs(r, b, torch.tensor([1, 1])).delta.tolist() == [INF, 0.0]


def test_no_distribution_has_no_statistics():
    nothing, something = torch.full((1, 3), -INF), torch.zeros(1, 3)
    tokens = torch.tensor([0])
    result = delta_logprobs(nothing, something, tokens)
    assert result.rlvr.isnan() and result.rlvr_entropy.isnan() and result.kl.isnan()
    assert result.base_entropy.item() == pytest.approx(math.log(3))
    result = delta_logprobs(something, nothing, tokens)
    assert result.base.isnan() and result.base_entropy.isnan() and result.kl.isnan()


@pytest.mark.parametrize("tokens", [torch.tensor([2, 0]), torch.tensor([[2, 1], [0, 0]])])
def test_tokens_of_either_shape(tokens):
    r, b = torch.randn(2, 5), torch.randn(2, 5)
    result = delta_logprobs(r, b, tokens)
    assert result.rlvr.shape == result.base.shape == result.delta.shape == tokens.shape
    for at in range(tokens.numel()):
        row = at // (tokens.numel() // 2)
        expected = r[row].log_softmax(-1)[tokens.flatten()[at]]
        assert result.rlvr.flatten()[at] == expected
