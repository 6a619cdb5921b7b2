"""Every implementation of `extrapolate` against the definition in float64, and bit for bit."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rlvr_decode.kernels import reference

INF = float("inf")
STRENGTHS = torch.tensor([-1.0, -0.5, 0.0, 0.1, 1.0, 4.0])
PLAUSIBILITIES = torch.tensor([0.1, 0.0, 0.1, 0.0, 0.05, 0.3])
N = len(STRENGTHS)


def logits(width, dtype=torch.float32, rows=N, seed=0):
    """A pair that mostly agrees, as real ones do, at a large common offset."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, width, generator=generator) * 4 + 20
    rlvr = base + torch.randn(rows, width, generator=generator) * 0.5
    return rlvr.to(dtype), base.to(dtype)


def oracle(rlvr, base, strength=STRENGTHS, plausibility=PLAUSIBILITIES):
    return reference.extrapolate(
        rlvr.double(), base.double(), strength.double(), plausibility.double()
    )


def working(rlvr, base, strength=STRENGTHS, plausibility=PLAUSIBILITIES):
    return reference.extrapolate(rlvr.float(), base.float(), strength, plausibility)


def bits(tensor):
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 2, 37, 4096, 9001])
def test_is_the_definition(kernels, assert_within_budget, width, dtype):
    rlvr, base = logits(width, dtype)
    exact, same = oracle(rlvr, base), working(rlvr, base)
    z = kernels.extrapolate(rlvr, base, STRENGTHS, PLAUSIBILITIES)
    assert_within_budget(z, exact, same)
    assert_within_budget(z.softmax(-1), exact.softmax(-1), same.softmax(-1))

    z = kernels.extrapolate_(rlvr, base, STRENGTHS, PLAUSIBILITIES)
    assert z.dtype == dtype
    assert_within_budget(z, exact, same.to(dtype))
    assert_within_budget(z.softmax(-1), exact.softmax(-1), same.to(dtype).softmax(-1))


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_may_differ(kernels, assert_within_budget, out_dtype):
    rlvr, _ = logits(515, torch.bfloat16)
    _, base = logits(515, torch.float16)
    z = kernels.extrapolate(rlvr, base, STRENGTHS, PLAUSIBILITIES, out_dtype)
    assert_within_budget(z, oracle(rlvr, base), working(rlvr, base).to(out_dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strength_0_leaves_every_bit(kernels, dtype):
    rlvr, base = logits(700, dtype)
    rlvr[:, :5] = torch.tensor([-INF, INF, math.nan, -0.0, 1e-7])
    base[:, 300:] = math.nan
    strength = torch.tensor([0.0, -0.0, 0.0, 1.0, 0.0, 0.0])
    untouched = strength == 0
    for width in (700, 650):
        arguments = rlvr, base[:, :width], strength, PLAUSIBILITIES
        for z in (kernels.extrapolate(*arguments, dtype), kernels.extrapolate_(*arguments)):
            assert torch.equal(bits(z)[untouched], bits(rlvr)[untouched])
            assert z[3].isnan().any()


def test_strength_minus_1_is_base(kernels):
    rlvr, base = logits(9001)
    z = kernels.extrapolate(rlvr, base, torch.full((N,), -1.0), PLAUSIBILITIES)
    torch.testing.assert_close(z.softmax(-1), base.softmax(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("widths", [(37, 40), (40, 37), (5000, 4096), (4096, 5000), (5, 5000)])
def test_paddings_may_differ(kernels, assert_within_budget, widths):
    rlvr, base = logits(widths[0])[0], logits(widths[1])[1]
    z = kernels.extrapolate(rlvr, base, STRENGTHS, PLAUSIBILITIES)
    assert_within_budget(z, oracle(rlvr, base), working(rlvr, base))
    assert torch.equal(z, kernels.extrapolate_(rlvr, base, STRENGTHS, PLAUSIBILITIES))


def test_any_stride_and_nothing_beside_the_view(kernels):
    rlvr, base = logits(301)
    expected = kernels.extrapolate(rlvr, base, STRENGTHS, PLAUSIBILITIES)

    wide = torch.full((2 * N, 3 * 301), math.nan)
    views = {
        "rows": wide[::2, 7:308],
        "columns": wide[:N, ::3],
        "transposed": wide.t()[:301, :N].t(),
    }
    for view in views.values():
        wide.fill_(math.nan)
        view.copy_(rlvr)
        base_view = torch.full((301, N + 2), math.nan).t()[1:-1].copy_(base)
        z = kernels.extrapolate(view, base_view, STRENGTHS, PLAUSIBILITIES)
        assert torch.equal(z, expected)

        z = kernels.extrapolate_(view, base_view, STRENGTHS, PLAUSIBILITIES)
        assert z.stride() == view.stride()
        assert torch.equal(z, expected)
        memory = torch.as_strided(z, wide.shape, wide.stride(), 0)
        assert memory.isnan().sum() == wide.numel() - rlvr.numel()


@pytest.mark.parametrize("width", [37, 5000, 40000])
def test_a_row_does_not_know_its_batch(kernels, width):
    rlvr, base = logits(width)
    rlvr[1, ::3] = -INF
    together = kernels.extrapolate(rlvr, base, STRENGTHS, PLAUSIBILITIES)
    for i in range(N):
        row = slice(i, i + 1)
        alone = kernels.extrapolate(rlvr[row], base[row], STRENGTHS[row], PLAUSIBILITIES[row])
        assert torch.equal(bits(alone), bits(together[row]))

    order = torch.tensor([3, 5, 0, 1, 4, 2])
    shuffled = (x[order] for x in (rlvr, base, STRENGTHS, PLAUSIBILITIES))
    assert torch.equal(bits(kernels.extrapolate(*shuffled)), bits(together[order]))


@pytest.mark.parametrize("poison", [math.nan, INF])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_no_distribution_shows(kernels, poison, which):
    pair = logits(5000)
    pair[which][:, 4200] = poison
    z = kernels.extrapolate(*pair, STRENGTHS, PLAUSIBILITIES)
    touched = STRENGTHS != 0
    assert not z[touched].isfinite().any()
    assert z[touched].isnan().any(-1).all()


def test_no_rows(kernels):
    rlvr, base = logits(10, rows=0)
    assert kernels.extrapolate(rlvr, base, torch.empty(0), torch.empty(0)).shape == (0, 10)


def rows_with_masks(width):
    value = st.one_of(st.just(-INF), st.floats(-40, 40, width=32))
    return st.lists(value, min_size=width, max_size=width)


@given(data=st.data())
@hypothesis_settings(
    max_examples=60,
    deadline=None,
    derandomize=True,  # a budget measured on three numbers may be met by luck, or missed
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_masks_are_never_undone(kernels, assert_within_budget, data):
    width, other = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    count = data.draw(st.integers(1, 4))
    rlvr = torch.tensor([data.draw(rows_with_masks(width)) for _ in range(count)])
    base = torch.tensor([data.draw(rows_with_masks(other)) for _ in range(count)])
    per_row = st.lists(
        st.sampled_from([-1.0, -0.25, 0.0, 0.5, 10.0]), min_size=count, max_size=count
    )
    strength = torch.tensor(data.draw(per_row))
    # A plausibility that no ratio of these logits meets by accident of rounding.
    plausibility = torch.full((count,), data.draw(st.sampled_from([0.0, 0.0517])))

    for z in (
        kernels.extrapolate(rlvr, base, strength, plausibility),
        kernels.extrapolate_(rlvr, base, strength, plausibility),
    ):
        assert not z.isnan().any()
        assert (z < INF).all()
        assert (z[rlvr == -INF] == -INF).all()
        exact = oracle(rlvr, base, strength, plausibility)
        near = (rlvr - rlvr.amax(-1, keepdim=True) - math.log(0.0517)).abs() < 1e-4
        if not near.any():
            assert_within_budget(z, exact, working(rlvr, base, strength, plausibility))


@given(data=st.data())
@hypothesis_settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_logits_at_any_strength(kernels, any_logits, assert_within_budget, data):
    count, widths = data.draw(st.integers(1, 4)), st.sampled_from([1, 2, 31, 65, 1030])
    rlvr, base = (any_logits(data, count, data.draw(widths)) for _ in range(2))
    strengths = st.lists(st.floats(-1, 10, width=32), min_size=count, max_size=count)
    strength = torch.tensor(data.draw(strengths))
    plausibility = torch.full((count,), data.draw(st.sampled_from([0.0, 0.0517, 1.0])))
    settings = strength, plausibility

    # Where rounding alone would decide whether a token is plausible, both answers are right.
    gap = (
        rlvr.double() - rlvr.double().amax(-1, keepdim=True) - plausibility.double().log()[:, None]
    )
    if ((gap != 0) & (gap.abs() < 1e-4)).any():
        return
    exact, same = oracle(rlvr, base, *settings), working(rlvr, base, *settings)
    assert_within_budget(kernels.extrapolate(rlvr, base, *settings), exact, same)
    z = kernels.extrapolate_(rlvr, base, *settings)
    assert_within_budget(z, exact, same.to(rlvr.dtype))
    untouched = strength == 0
    assert torch.equal(bits(z)[untouched], bits(rlvr)[untouched])
