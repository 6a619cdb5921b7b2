"""Every implementation of `gated_extrapolate` against the definition in float64."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rlvr_decode.kernels.gated_reference import GATES, PRIMARIES, Gated, Rule, gated_extrapolate

INF = float("inf")

# On bfloat16's grid a whole strength makes ties, which rounding breaks: not where top-k cuts.
# gate, threshold, primary, temperature, top-k, top-p, min-p, strength, plausibility
ROWS = [
    ("delta", -0.3, "base", 1.0, 0, 0.7, 0.0, 0.1, 0.0),
    ("delta", -0.35, "rlvr", 1.0, 0, 1.0, 0.0, 0.5, 0.05),
    ("delta", 0.2, "base", 0.6, 20, 0.95, 0.01, 0.0, 0.3),
    ("delta", 0.0, "base", 0.0, 0, 1.0, 0.0, 1.0, 0.1),
    ("none", 0.0, "rlvr", 1.3, 5, 1.0, 0.0, -0.5, 0.0),
    ("kl", 0.02, "base", 1.0, 0, 1.0, 0.1, 2.0, 0.1),
    ("reverse_kl", 30.0, "base", 0.8, 50, 0.9, 0.0, 0.9, 0.0),
    ("jsd", 0.01, "rlvr", 1.0, 1, 1.0, 0.0, 0.7313, 0.0),
    ("entropy", 0.5, "rlvr", 0.7, 0, 0.5, 0.0, -1.0, 0.0),
    ("random", 0.25, "base", 1.0, 0, 0.8, 0.0, 1.0, 0.05),
    ("random", 0.25, "base", 0.0, 0, 1.0, 0.0, 4.0, 0.0),
    ("delta", -INF, "rlvr", 1.0, 0, 0.9, 0.0, 1.0, 0.0),
    ("delta", -0.2, "rlvr", 1.0, 30, 0.99, 0.3, 0.3, 0.0),
]
N = len(ROWS)


def rule_of(*rows):
    gate, threshold, primary, temperature, top_k, top_p, min_p, strength, plausibility = zip(
        *rows, strict=True
    )
    return Rule(
        strength=torch.tensor(strength),
        plausibility=torch.tensor(plausibility),
        gate=torch.tensor([GATES[name] for name in gate], dtype=torch.int32),
        threshold=torch.tensor(threshold),
        primary=torch.tensor([PRIMARIES[name] for name in primary], dtype=torch.int32),
        temperature=torch.tensor(temperature),
        top_k=torch.tensor(top_k, dtype=torch.int32),
        top_p=torch.tensor(top_p),
        min_p=torch.tensor(min_p),
    )


RULE = rule_of(*ROWS)


def logits(width, dtype=torch.float32, rows=N, offset=20.0):
    generator = torch.Generator().manual_seed(width)
    base = torch.randn(rows, width, generator=generator) * 3 + offset
    rlvr = base + torch.randn(rows, width, generator=generator) * 0.5
    return rlvr.to(dtype), base.to(dtype)


def some_bias(width):
    generator = torch.Generator().manual_seed(width)
    bias = torch.randn(N, width, generator=generator)
    bias[:, 1:][torch.rand(N, width - 1, generator=generator) < 0.3] = -INF
    return bias


def in_dtype(dtype, rlvr, base, rule, bias=None):
    bias = None if bias is None else bias.to(dtype)
    return gated_extrapolate(rlvr.to(dtype), base.to(dtype), rule, bias)


def check(kernels, assert_within_budget, rlvr, base, rule=RULE, bias=None):
    result = kernels.gated_extrapolate(rlvr, base, rule, bias)
    exact = in_dtype(torch.float64, rlvr, base, rule, bias)
    same = in_dtype(torch.float32, rlvr, base, rule, bias)
    for value, oracle, working in zip(result, exact, same, strict=True):
        assert value.dtype == torch.float32
        assert_within_budget(value, oracle, working)
    probabilities = (each.logprobs.exp() for each in (result, exact, same))
    assert_within_budget(*probabilities)
    torch.testing.assert_close(result.logprobs.exp().sum(-1), torch.ones(len(rlvr)))
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 2, 37, 4096, 9001])
def test_is_the_definition(kernels, assert_within_budget, width, dtype):
    check(kernels, assert_within_budget, *logits(width, dtype))


@pytest.mark.parametrize("width", [37, 5000])
def test_with_a_bias(kernels, assert_within_budget, width):
    bias = some_bias(width)
    result = check(kernels, assert_within_budget, *logits(width), bias=bias)
    assert (result.logprobs[bias == -INF] == -INF).all()


@pytest.mark.parametrize("widths", [(37, 40), (40, 37), (5000, 4096)])
def test_paddings_may_differ(kernels, assert_within_budget, widths):
    rlvr, base = logits(widths[0])[0], logits(widths[1])[1]
    result = check(kernels, assert_within_budget, rlvr, base, bias=some_bias(widths[0]))
    assert (result.logprobs[:, min(widths) :] == -INF).all()


@pytest.mark.parametrize("greedy", [3, 10])
def test_greedy_is_certain(kernels, greedy):
    row = slice(greedy, greedy + 1)
    rlvr, base = logits(300)
    result = kernels.gated_extrapolate(rlvr[row], base[row], rule_of(ROWS[greedy]))
    support = result.logprobs.isfinite().sum()
    if greedy == 3:
        assert result.rate in (0.0, 1.0)
        assert support == 1 and result.logprobs.max() == 0
    else:
        assert result.rate == 0.25 and support <= 2


def test_the_gate_may_take_all_or_nothing(kernels):
    rlvr, base = logits(300)
    rows = [("delta", t, "base", 1.0, 0, 1.0, 0.0, 0.5, 0.0) for t in (-INF, INF)]
    result = kernels.gated_extrapolate(rlvr[:2], base[:2], rule_of(*rows))
    torch.testing.assert_close(result.rate, torch.tensor([0.0, 1.0]))
    z = rlvr[1] + 0.5 * (rlvr[1] - base[1])
    wanted = torch.stack([base[0], z]).log_softmax(-1)
    torch.testing.assert_close(result.logprobs, wanted, rtol=1e-5, atol=1e-5)


def test_the_same_model_twice_has_no_direction(kernels):
    rlvr, _ = logits(500)
    rows = [("delta", t, "base", 1.0, 0, 1.0, 0.0, 3.0, 0.0) for t in (0.0, -1e-6)]
    result = kernels.gated_extrapolate(rlvr[:2], rlvr[:2], rule_of(*rows))
    torch.testing.assert_close(result.rate, torch.tensor([1.0, 0.0]))
    wanted = rlvr[:2].log_softmax(-1)
    torch.testing.assert_close(result.logprobs, wanted, rtol=1e-5, atol=1e-5)


def test_any_stride(kernels):
    rlvr, base = logits(301)
    bias = some_bias(301)
    expected = kernels.gated_extrapolate(rlvr, base, RULE, bias)
    rlvr_view = torch.full((301, N + 2), math.nan).t()[1:-1].copy_(rlvr)
    base_view = torch.full((2 * N, 602), math.nan)[::2, ::2].copy_(base)
    bias_view = torch.full((N, 903), math.nan)[:, ::3].copy_(bias)
    result = kernels.gated_extrapolate(rlvr_view, base_view, RULE, bias_view)
    for value, wanted in zip(result, expected, strict=True):
        assert torch.equal(value, wanted)


@pytest.mark.parametrize("width", [37, 5000])
def test_a_row_does_not_know_its_batch(kernels, width):
    rlvr, base = logits(width)
    bias = some_bias(width)
    together = kernels.gated_extrapolate(rlvr, base, RULE, bias)
    for i in (0, 2, 3, 7, 9):
        row = slice(i, i + 1)
        rule = Rule(*(setting[row] for setting in RULE))
        alone = kernels.gated_extrapolate(rlvr[row], base[row], rule, bias[row])
        for value, wanted in zip(alone, together, strict=True):
            assert torch.equal(value, wanted[row])

    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    rule = Rule(*(setting[order] for setting in RULE))
    shuffled = kernels.gated_extrapolate(rlvr[order], base[order], rule, bias[order])
    for value, wanted in zip(shuffled, together, strict=True):
        assert torch.equal(value, wanted[order])


@pytest.mark.parametrize("poison", [math.nan, INF])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_no_distribution_shows(kernels, poison, which):
    pair = logits(5000)
    pair[which][:, 4200] = poison
    bias = some_bias(5000)
    result = kernels.gated_extrapolate(*pair, RULE, bias)
    assert result.rate.isnan().all()
    assert result.logprobs[bias > -INF].isnan().all()
    assert (result.logprobs[bias == -INF] == -INF).all()


@pytest.mark.parametrize("which", [0, 1])
def test_models_that_rule_everything_out(kernels, which):
    pair = logits(300)
    pair[which][:] = -INF
    result = kernels.gated_extrapolate(*pair, RULE)
    assert result.rate.isnan().all()
    permitted = ~((RULE.primary == which)[:, None].expand(-1, 300))
    assert result.logprobs[permitted].isnan().all()
    assert (result.logprobs[~permitted] == -INF).all()


def test_a_mask_leaves_the_direction_alone(kernels):
    """Where base rules a token out, Δ's normaliser shows: it is that of the whole distribution."""
    rlvr, base = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[-INF, -INF, 0.0]])
    bias = torch.tensor([[0.0, -INF, 0.0]])
    rule = rule_of(("none", 0.0, "rlvr", 1.0, 0, 1.0, 0.0, 0.5, 0.0))
    z = torch.tensor([[0.0, -INF, -0.5 * math.log(3)]])
    result = kernels.gated_extrapolate(rlvr, base, rule, bias)
    torch.testing.assert_close(result.logprobs, z.log_softmax(-1))


def test_no_second_draw(kernels):
    rlvr, base = logits(300, rows=4)
    rlvr[:, :2] = -INF
    bias = torch.full((4, 300), -INF)
    bias[:, :2] = 0.0
    rows = [
        (gate, threshold, "base", temperature, 0, 1.0, 0.0, 0.5, 0.1)
        for gate, threshold in (("none", 0.0), ("random", 0.0))
        for temperature in (0.0, 1.0)
    ]
    result = kernels.gated_extrapolate(rlvr, base, rule_of(*rows), bias)
    assert result.logprobs[:2, :2].isnan().all()
    torch.testing.assert_close(result.logprobs[2:].exp().sum(-1), torch.ones(2))
    assert (result.logprobs[:, 2:] == -INF).all()


def test_no_rows(kernels):
    rlvr, base = logits(10, rows=0)
    result: Gated = kernels.gated_extrapolate(rlvr, base, Rule(*(s[:0] for s in RULE)))
    assert result.logprobs.shape == (0, 10) and result.rate.shape == (0,)


# Drawn from lists alone: Hypothesis takes integers and floats from the constants of all loaded
# modules, so that the examples would be others in another order of the tests.
# Numbers that no sum or difference of the logits below meets by accident of rounding.
a_row = st.tuples(
    st.sampled_from(sorted(GATES)),
    st.sampled_from([-0.3137, 0.2137, 0.6519]),
    st.sampled_from(sorted(PRIMARIES)),
    st.sampled_from([0.0, 0.83, 1.0, 1.71]),
    st.sampled_from(range(11)),
    st.sampled_from([1.0, 0.7713, 0.2391]),
    st.sampled_from([0.0, 0.0517]),
    st.sampled_from([-0.9173, -0.2617, 0.0, 0.7313]),
    st.sampled_from([0.0, 0.0431]),
).filter(lambda row: row[0] != "random" or row[1] > 0)


@given(data=st.data())
@hypothesis_settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_masked_tokens(kernels, data):
    width, other = (
        data.draw(st.sampled_from(range(1, 10))),
        data.draw(st.sampled_from(range(1, 10))),
    )
    rows = data.draw(st.lists(a_row, min_size=1, max_size=3))
    value = st.one_of(st.just(-INF), st.sampled_from([i / 2 for i in range(-20, 21)]))

    def matrix(columns, value=value):
        row = st.lists(value, min_size=columns, max_size=columns)
        return torch.tensor(data.draw(st.lists(row, min_size=len(rows), max_size=len(rows))))

    rlvr, base = matrix(width), matrix(other)
    bias = matrix(width, st.sampled_from([0.0, 1.5137, -INF])) if data.draw(st.booleans()) else None
    rule = rule_of(*rows)
    result = kernels.gated_extrapolate(rlvr, base, rule, bias)
    exact = in_dtype(torch.float64, rlvr, base, rule, bias)
    for value, wanted in zip(result, exact, strict=True):
        torch.testing.assert_close(value, wanted.float(), rtol=2e-6, atol=2e-5, equal_nan=True)
    if bias is not None:
        assert (result.logprobs[bias == -INF] == -INF).all()
    total = result.logprobs.exp().sum(-1)
    torch.testing.assert_close(total[total > 0], torch.ones_like(total[total > 0]))


@pytest.mark.parametrize("kernels", ["cpu"], indirect=True)
@given(data=st.data())
@hypothesis_settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_logits(kernels, any_logits, data):
    rows, widths = (
        data.draw(st.lists(a_row, min_size=1, max_size=3)),
        st.sampled_from([2, 31, 1030]),
    )
    rlvr, base = (any_logits(data, len(rows), data.draw(widths)) for _ in range(2))
    rule = rule_of(*rows)
    result = kernels.gated_extrapolate(rlvr, base, rule)
    exact = in_dtype(torch.float64, rlvr, base, rule, None)
    for value, wanted in zip(result, exact, strict=True):
        # Logits of 200 are known to 1e-5 in float32.
        torch.testing.assert_close(value, wanted.float(), rtol=1e-5, atol=2e-4, equal_nan=True)
