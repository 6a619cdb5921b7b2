"""The door: what it lets in, what it says to the rest, and that PyTorch may trust it."""

import math
import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from rlvr_decode import ops
from rlvr_decode.kernels import cpu, gated_reference, reference

INF = float("inf")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def inputs(rows=3, width=11, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    rlvr, base = (torch.randn(rows, width, generator=generator) for _ in range(2))
    strength = torch.linspace(-1, 2, rows)
    plausibility = torch.full((rows,), 0.1)
    return (
        rlvr.to(device, dtype),
        base.to(device, dtype),
        strength.to(device),
        plausibility.to(device),
    )


def a_rule(device="cpu", **changes):
    """The papers' rule for three rows, drawn from base at top-p 0.7."""
    plain = {"strength": 0.1, "plausibility": 0.0, "gate": ops.GATES["delta"], "threshold": -0.3}
    plain |= {"primary": ops.PRIMARIES["base"], "temperature": 1.0}
    plain |= {"top_k": 0, "top_p": 0.7, "min_p": 0.0}
    return ops.Rule(
        **{
            name: torch.tensor([value] * 3, device=device).to(
                torch.float32 if isinstance(value, float) else torch.int32
            )
            for name, value in plain.items()
        }
        | changes
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device, dtype):
    rlvr, base, strength, plausibility = inputs(device=device, dtype=dtype)
    tokens = torch.tensor([[0, 3]] * 3, device=device)
    namespace = torch.ops.rlvr_decode
    torch.library.opcheck(
        namespace.extrapolate.default, (rlvr, base, strength, plausibility, torch.float32)
    )
    torch.library.opcheck(namespace.extrapolate_.default, (rlvr, base, strength, plausibility))
    torch.library.opcheck(namespace.delta_logprobs.default, (rlvr, base, tokens))
    for bias in (None, torch.zeros_like(rlvr, dtype=torch.float32)):
        arguments = rlvr, base, list(a_rule(device)), bias
        torch.library.opcheck(namespace.gated_extrapolate.default, arguments)


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_a_graph_break(device):
    rule = a_rule(device)

    def step(rlvr, base, strength, plausibility, tokens):
        gated = ops.gated_extrapolate(rlvr, base, rule)
        ops.extrapolate_(rlvr, base, strength, plausibility)
        z = ops.extrapolate(rlvr, base, strength, 0.05, out_dtype=torch.bfloat16)
        return rlvr + 1, z, *gated, *ops.delta_logprobs(rlvr, base, tokens)

    tokens = torch.tensor([1, 0, 2], device=device)
    eager, traced = inputs(device=device), inputs(device=device)
    expected = step(*eager, tokens)
    # Tracing, fakes and functionalisation without a code generator, which needs a C++ compiler.
    result = torch.compile(step, fullgraph=True, backend="aot_eager")(*traced, tokens)
    for value, wanted in zip(result, expected, strict=True):
        assert torch.equal(value, wanted)
    assert torch.equal(traced[0], eager[0])


def test_loads_triton_only_for_a_gpu():
    program = (
        "import sys, torch; from rlvr_decode import ops; assert 'triton' not in sys.modules;"
        "x = torch.zeros(2, 5); ops.extrapolate(x, x, torch.ones(2));"
        "ops.delta_logprobs(x, x, torch.ones(2).long());"
        "one, code = torch.ones(2), torch.ones(2).int();"
        "ops.gated_extrapolate(x, x, ops.Rule(one, one, code, one, code, one, code, one, one));"
        "assert not any('rlvr_decode.kernels.' + name in sys.modules for name in"
        " ('extrapolate', 'delta_logprobs', 'gated_extrapolate'))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_in_place_returns_its_argument():
    rlvr, base, strength, plausibility = inputs()
    expected = ops.extrapolate(rlvr, base, strength, plausibility)
    assert ops.extrapolate_(rlvr, base, strength, plausibility) is rlvr
    assert torch.equal(rlvr, expected)


def test_plausibility_may_be_one_number():
    rlvr, base, strength, plausibility = inputs()
    expected = ops.extrapolate(rlvr, base, strength, plausibility)
    assert (expected == -INF).any()
    assert torch.equal(ops.extrapolate(rlvr, base, strength, 0.1), expected)
    assert ops.extrapolate(rlvr, base, strength).isfinite().all()


def test_settings_of_any_stride():
    rlvr, base, strength, plausibility = inputs()
    expected = ops.extrapolate(rlvr, base, strength, plausibility)
    settings = torch.stack([strength, plausibility], dim=1)
    assert torch.equal(ops.extrapolate(rlvr, base, settings[:, 0], settings[:, 1]), expected)


def test_gradients_are_refused():
    rlvr, base, strength, _ = inputs()
    with pytest.raises(RuntimeError, match="no autograd formula"):
        ops.delta_logprobs(rlvr.requires_grad_(), base, torch.tensor([0, 1, 2])).kl.sum().backward()
    with pytest.raises(RuntimeError, match="no autograd formula"):
        ops.extrapolate(rlvr, base, strength).sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rlvr": torch.zeros(3)}, r"rlvr has shape \[3\]"),
        ({"rlvr": torch.zeros(3, 0)}, r"rlvr has shape \[3, 0\]"),
        ({"base": torch.zeros(2, 5)}, "rlvr has 3 rows and base 2"),
        ({"base": torch.zeros(3, 5).double()}, "base has dtype torch.float64: use float32, bf"),
        ({"base": torch.zeros(3, 5, device="meta")}, "base is on meta, rlvr on cpu"),
        (
            {"strength": torch.zeros(2)},
            r"strength is torch.float32 \[2\]: must be torch.float32 \[3",
        ),
        ({"strength": torch.zeros(3, 1)}, r"strength is torch.float32 \[3, 1\]"),
        ({"strength": torch.zeros(3).half()}, r"strength is torch.float16 \[3\]"),
        ({"strength": torch.zeros(3, device="meta")}, "strength is on meta"),
        ({"plausibility": torch.zeros(4)}, r"plausibility is torch.float32 \[4\]"),
        ({"plausibility": 1.5}, "plausibility=1.5: must be from 0 to 1"),
        ({"plausibility": math.nan}, "plausibility=nan"),
        ({"out_dtype": torch.float64}, "out_dtype=torch.float64: must be one of float32"),
    ],
)
def test_extrapolate_names_what_does_not_fit(change, message):
    arguments = {"rlvr": torch.zeros(3, 5), "base": torch.zeros(3, 5), "strength": torch.zeros(3)}
    with pytest.raises(ValueError, match=message):
        ops.extrapolate(**arguments | change)
    if "out_dtype" not in change:
        with pytest.raises(ValueError, match=message):
            ops.extrapolate_(**arguments | change)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(3), "tokens has dtype torch.float32"),
        (torch.zeros(3, dtype=torch.bool), "tokens has dtype torch.bool"),
        (torch.zeros(2).long(), r"tokens has shape \[2\]: must be \[3\] or \[3, K\]"),
        (torch.zeros(3, 1, 1).long(), r"tokens has shape \[3, 1, 1\]"),
        (torch.zeros(3, device="meta").long(), "tokens is on meta"),
    ],
)
def test_delta_logprobs_names_what_does_not_fit(tokens, message):
    with pytest.raises(ValueError, match=message):
        ops.delta_logprobs(torch.zeros(3, 5), torch.zeros(3, 5), tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": torch.zeros(2, 5)}, "rlvr has 3 rows and base 2"),
        (
            {"rule": {"gate": torch.zeros(3)}},
            r"gate is torch.float32 \[3\]: must be torch.int32 \[3",
        ),
        ({"rule": {"top_k": torch.zeros(3).long()}}, r"top_k is torch.int64 \[3\]"),
        (
            {"rule": {"top_p": torch.ones(2)}},
            r"top_p is torch.float32 \[2\]: must be torch.float32",
        ),
        ({"rule": {"min_p": torch.ones(3, device="meta")}}, "min_p is on meta"),
        ({"bias": torch.zeros(3, 4)}, r"bias is torch.float32 \[3, 4\]: must be .* \[3, 5\]"),
        ({"bias": torch.ones(3, 5).bool()}, "bias is torch.bool"),
        ({"bias": torch.ones(3, 5, device="meta")}, "bias is on meta"),
    ],
)
def test_gated_extrapolate_names_what_does_not_fit(change, message):
    arguments = {"rlvr": torch.zeros(3, 5), "base": torch.zeros(3, 5)} | change
    arguments["rule"] = a_rule(**arguments.get("rule", {}))
    with pytest.raises(ValueError, match=message):
        ops.gated_extrapolate(**arguments)


def test_rules_of_any_stride():
    rlvr, base, _, _ = inputs()
    rule = a_rule()
    apart = ops.Rule(*(torch.stack([setting, setting], dim=1)[:, 0] for setting in rule))
    assert not apart.gate.is_contiguous()
    expected = ops.gated_extrapolate(rlvr, base, rule)
    for value, wanted in zip(ops.gated_extrapolate(rlvr, base, apart), expected, strict=True):
        assert torch.equal(value, wanted)


def peak_memory(function, *arguments) -> int:
    """The most bytes allocated at once while the function runs, as the allocator saw it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        result = function(*arguments)  # kept alive to the end of the trace
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    in_use = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        in_use += event.nbytes()
        peak = max(peak, in_use)
    del result
    return peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(16, 50_000), (32, 20_000), (512, 1000)])
def test_cpu_scratch_is_below_the_logits(rows, width, masked, dtype):
    rlvr, base, strength, plausibility = inputs(rows, width, dtype=dtype)
    if masked:
        rlvr[:, 0] = -INF
    logits = rows * width * 4
    in_place = peak_memory(ops.extrapolate_, rlvr, base, strength, plausibility)
    assert 0 < in_place < logits
    out_of_place = peak_memory(ops.extrapolate, rlvr, base, strength, plausibility)
    assert logits < out_of_place < 2 * logits
    tokens = torch.zeros(rows, 1, dtype=torch.long)
    assert 0 < peak_memory(ops.delta_logprobs, rlvr, base, tokens) < logits

    # The probe sees what it is meant to see.
    arguments = rlvr.float(), base.float(), strength, plausibility
    assert peak_memory(reference.extrapolate, *arguments) > 2 * logits


def test_rows_of_strength_0_cost_nothing(monkeypatch):
    def fail(*_):
        raise AssertionError("arithmetic on a row of strength 0")

    monkeypatch.setattr(cpu, "_extrapolate_block", fail)
    rlvr, base, _, plausibility = inputs()
    assert torch.equal(ops.extrapolate(rlvr, base, torch.zeros(3), plausibility), rlvr)
    before = rlvr.clone()
    assert torch.equal(ops.extrapolate_(rlvr, base, torch.zeros(3), plausibility), before)
    with pytest.raises(AssertionError):
        ops.extrapolate_(rlvr, base, torch.tensor([0.0, 1.0, 0.0]), plausibility)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("rows", "width"), [(40, 50_000), (40, 100)])
def test_cpu_blocks_do_not_show(rows, width, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rlvr, base, _, plausibility = inputs(rows, width)
    strength = torch.tensor([0.0, 1.0, 1.0, 0.0, -0.5]).repeat(rows // 5)
    rlvr[7, 3] = -INF
    expected = reference.extrapolate(rlvr, base, strength, plausibility)
    assert torch.equal(ops.extrapolate(rlvr, base, strength, plausibility), expected)
    tokens = torch.zeros(rows, dtype=torch.long)
    result = ops.delta_logprobs(rlvr, base, tokens)
    torch.testing.assert_close(result, reference.delta_logprobs(rlvr, base, tokens))
    rule = ops.Rule(*(setting[:1].expand(rows) for setting in a_rule()))
    gated = ops.gated_extrapolate(rlvr, base, rule)
    torch.testing.assert_close(gated, gated_reference.gated_extrapolate(rlvr, base, rule))
