"""The CPU's linear layer of two models against float64, whatever the shapes and the threads."""

import pytest
import torch

from rlvr_decode.kernels import delta_linear as kernel
from rlvr_decode.kernels.delta_linear import NEEDED, delta_linear, pack, takes
from rlvr_decode.places import cache_directory

CAPABILITIES = torch.cpu.get_capabilities()
ABLE = dict.fromkeys(NEEDED, True)
runs_here = pytest.mark.skipif(
    not takes(torch.empty(2, 2), CAPABILITIES), reason="needs AVX-512 with bfloat16 products"
)
DTYPES = [torch.bfloat16, torch.float32]
SUMMING = 16 * torch.finfo(torch.float32).eps  # of the sum of what is added up, without signs
# Outputs, inputs, rank: panels and blocks of inputs that end early, and layers of real models.
SHAPES = [(1, 2, 2), (32, 64, 16), (100, 514, 16), (1280, 768, 48), (64, 2304, 80)]


@pytest.fixture(scope="module", autouse=True)
def loaded():
    if takes(torch.empty(2, 2), CAPABILITIES):
        kernel.load(cache_directory("kernels"))


def make_layer(outputs, inputs, rank, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    weight = normal(outputs, inputs, scale=inputs**-0.5)
    up, down = normal(outputs, rank), normal(rank, inputs, scale=inputs**-0.5)
    return weight, up, down, normal(outputs), lambda rows: normal(rows, inputs)


def compute(x, weight, up, down, bias=None):
    packed = pack(torch.cat([weight, -up], dim=1))
    return delta_linear(x, packed, pack(down), bias, len(weight))


def exact(x, weight, up, down, bias=None):
    """The definition in float64, and how far the operation may be from it.

    It sums in float32 and rounds twice: the result, and before it A x.
    """
    rounding = torch.finfo(x.dtype).eps / 2
    x, weight, up, down = (t.double() for t in (x, weight, up, down))
    y, size = x @ weight.T, x.abs() @ weight.abs().T
    base = x[len(x) // 2 :]
    y[len(x) // 2 :] -= base @ down.T @ up.T
    size[len(x) // 2 :] += base.abs() @ down.abs().T @ up.abs().T
    rounded = torch.zeros_like(y)
    rounded[len(x) // 2 :] = (base @ down.T).abs() @ up.abs().T
    if bias is not None:
        y, size = y + bias.double(), size + bias.double().abs()
    return y, SUMMING * size + rounding * (rounded + y.abs())


@runs_here
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("half", [1, 2, 6, 7, 8, 13, 14, 15, 100])
def test_both_halves_are_those_of_the_definition(shape, half, dtype):
    weight, up, down, bias, rows = make_layer(*shape, dtype)
    x = rows(2 * half)
    for added in (None, bias):
        expected, budget = exact(x, weight, up, down, added)
        error = (compute(x, weight, up, down, added).double() - expected).abs()
        assert (error <= budget).all()


@runs_here
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_down_no_row_takes_the_update(dtype):
    weight, up, down, bias, rows = make_layer(100, 514, 16, dtype)
    x = rows(9)
    expected, budget = exact(x, weight, up, torch.zeros_like(down), bias)
    for packed in (pack(weight), pack(torch.cat([weight, up], dim=1))):
        error = (delta_linear(x, packed, None, bias, 100).double() - expected).abs()
        assert (error <= budget).all()


@runs_here
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_know_its_batch(dtype):
    weight, up, down, bias, rows = make_layer(100, 1030, 16, dtype)
    x = rows(400)
    whole = compute(x, weight, up, down, bias)
    for count in (1, 5, 20):
        few = torch.cat([x[:count], x[200 : 200 + count]])
        rlvr, base = compute(few, weight, up, down, bias).chunk(2)
        assert torch.equal(rlvr, whole[:count]) and torch.equal(base, whole[200 : 200 + count])
    alone = delta_linear(x[:200], pack(torch.cat([weight, -up], dim=1)), None, bias, 100)
    assert torch.equal(alone, whole[:200])


@runs_here
@pytest.mark.parametrize("count", [46, 280, 400])
def test_threads_change_nothing(count):
    """Threads share panels, in one batch of tiles or two, or have many rows' batches alone."""
    weight, up, down, bias, rows = make_layer(100, 514, 16, torch.bfloat16)
    x, before = rows(count), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(compute(x, weight, up, down, bias))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@runs_here
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_that_is_not_finite_spoils_no_other(dtype):
    weight, up, down, _, rows = make_layer(32, 64, 16, dtype)
    x = rows(10)
    before = compute(x, weight, up, down)
    x[3], x[7] = torch.inf, torch.nan
    after = compute(x, weight, up, down)
    assert not after[[3, 7]].isfinite().any()
    others = [0, 1, 2, 4, 5, 6, 8, 9]
    assert torch.equal(after[others], before[others])


@runs_here
def test_views_and_no_rows_at_all():
    weight, up, down, _, rows = make_layer(32, 64, 16, torch.float32)
    wide = rows(6).repeat(1, 2)
    for x in (wide[:, 64:], wide[::3, :64], rows(64).T[:, :64]):
        assert torch.equal(compute(x, weight, up, down), compute(x.clone(), weight, up, down))
    assert compute(rows(0), weight, up, down).shape == (0, 32)


@runs_here
def test_the_compiler_is_told_the_truth():
    weight, up, down, bias, rows = make_layer(100, 514, 16, torch.bfloat16)
    packed = pack(torch.cat([weight, -up], dim=1))
    for of_down in (None, pack(down)):
        torch.library.opcheck(
            torch.ops.rlvr_decode.delta_linear.default, (rows(4), packed, of_down, bias, 100)
        )


@runs_here
@pytest.mark.parametrize(
    "change, named",
    [
        ({"x": torch.zeros(4, 64).half()}, "float32 or bfloat16"),
        ({"x": torch.zeros(4, 2, 64)}, "x must be"),
        ({"x": torch.zeros(4, 128)}, "weight must be packed"),
        ({"x": torch.zeros(3, 64)}, "x two halves"),
        ({"weight": torch.zeros(32, 80)}, "weight must be packed"),
        ({"weight": pack(torch.zeros(32, 80).bfloat16())}, "weight must be packed"),
        ({"outputs": 33}, "33 outputs"),
        ({"down": pack(torch.zeros(48, 64))}, "down must be packed"),
        ({"bias_O": torch.zeros(31)}, "bias must be"),
    ],
)
def test_what_does_not_fit_is_named(change, named):
    arguments = {
        "x": torch.zeros(4, 64),
        "weight": pack(torch.zeros(32, 80)),
        "down": pack(torch.zeros(16, 64)),
        "bias_O": torch.zeros(32),
        "outputs": 32,
    } | change
    with pytest.raises(RuntimeError, match=named):
        delta_linear(arguments.pop("x"), **arguments)


def test_panels_hold_units_of_their_outputs_side_by_side():
    weight = torch.arange(33 * 4, dtype=torch.float32).reshape(33, 4)
    packed = pack(weight)
    assert packed.shape == (2, 4, 32)
    assert torch.equal(packed[0, 3], weight[:32, 3])
    assert packed[1, 2, 0] == weight[32, 2] and not packed[1, :, 1:].any()
    halves = pack(weight.bfloat16())
    assert halves.shape == (2, 2, 64)
    assert halves[0, 1, :4].tolist() == weight.bfloat16()[:2, 2:4].flatten().tolist()


@pytest.mark.parametrize(
    "dtype, inputs, capabilities, expected",
    [
        (torch.bfloat16, 64, ABLE, True),
        (torch.float32, 63, ABLE, True),
        (torch.bfloat16, 63, ABLE, False),
        (torch.float16, 64, ABLE, False),
        (torch.bfloat16, 64, ABLE | {"amx_bf16": True}, False),
        (torch.float32, 64, ABLE | {"amx_bf16": True}, True),
        (torch.float32, 64, ABLE | {"avx512_bf16": False}, False),
        (torch.float32, 64, {"architecture": "aarch64"}, False),
    ],
)
def test_it_is_for_cpus_with_its_instructions_and_none_better(
    dtype, inputs, capabilities, expected
):
    assert takes(torch.empty(2, inputs, dtype=dtype), capabilities) is expected


def test_half_a_unit_cannot_be_packed():
    with pytest.raises(ValueError, match=r"63 inputs of torch.bfloat16"):
        pack(torch.empty(2, 63, dtype=torch.bfloat16))
