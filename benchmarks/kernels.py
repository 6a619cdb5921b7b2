"""The kernels against PyTorch on this device: eager, compiled, and a plain one-liner.

    python benchmarks/kernels.py [--device cuda --rows 1 16 64 256 --vocab 151936 --rounds 5]

Baselines are the definitions in `rlvr_decode/kernels/reference.py`, as they are and under
`torch.compile`, and `plain`: the formula alone, without masks, as one would first write it. Every
timing is preceded by a comparison with float64; on a wrong result nothing is reported. All take
turns, several times. On a GPU the L2 cache is emptied before each run, since between two steps of a
model it is. Results are appended to benchmarks/results/kernels.jsonl.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from findings import RESULTS, Finding, add_argument, append, ratios, surroundings, tell
from torch import Tensor

from rlvr_decode import Extrapolation, ops
from rlvr_decode.kernels import gated_reference, reference
from rlvr_decode.rules import rule_numbers, rule_of_rows
from rlvr_decode.sampling import Sampling

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
L2_BYTES = 256 * 2**20
SECONDS_EACH = 0.15
RULE = Extrapolation(strength=0.5, gate="delta", threshold=-0.3, primary="base")
SAMPLING = Sampling(temperature=1.0, top_p=0.7)
# Of probabilities and nats, against float64. PyTorch's own float32 log_softmax is off by 1e-5 at
# this width on a CPU.
TOLERANCE = 1e-4

RIVALS = {
    "plain": "torch, one line",
    "definition": "torch, the same work",
    "definition, compiled": "`torch.compile`, the same work",
}

Run = Callable[[], object]


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 16, 64, 256] if cuda else [1, 16]
    )
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels.jsonl")
    add_argument(parser)
    args = parser.parse_args()

    found: list[Finding] = []
    print(f"{'':38}{'ms':>9}{'GB/s':>8}   times ours")
    for name in args.dtypes:
        for rows in args.rows:
            inputs = make_inputs(rows, args.vocab, DTYPES[name], args.device)
            gate(*inputs)
            scratch = inputs[0].clone()
            restore = partial(scratch.copy_, inputs[0])
            for operation, runs in operations(scratch, *inputs, not args.no_compile).items():
                taken = turns(runs, restore, args.device, args.rounds)
                title = f"{operation} [{rows}, {args.vocab}] {name}"
                report(title, taken, inputs[0])
                found += compare(title, taken)
                record = {"operation": operation, "rows": rows, "vocab": args.vocab, "dtype": name}
                append(args.out, record | {"ms": taken} | surroundings() | on(args.device))
    tell(found, args.findings)


def turns(runs: dict[str, Run], restore: Run, device: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each way in each round."""
    taken: dict[str, list[float]] = {who: [] for who in runs}
    for _ in range(rounds):
        for who, run in runs.items():
            taken[who].append(measure(run, restore, device))
    return taken


def compare(title: str, taken: dict[str, list[float]]) -> list[Finding]:
    """Ours against PyTorch; the bars are for a GPU, where the Triton kernels run."""
    rivals = [who for who in taken if not who.startswith("ours") and who != "plain, compiled"]
    bars = {"definition": 1 / 4, "definition, compiled": 1 / 1.2}
    barred = torch.cuda.is_available() and title.startswith("extrapolate")
    return [
        Finding(
            what=title,
            rival=RIVALS[who],
            values=ratios(taken["ours"], taken[who]),
            at_most=bars.get(who) if barred else None,
            note="the formula alone: no plausibility, no masks" if who == "plain" else "",
        )
        for who in rivals
    ]


def make_inputs(
    rows: int, vocab: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    base = torch.randn(rows, vocab, generator=generator, device=device) * 4
    rlvr = base + torch.randn(rows, vocab, generator=generator, device=device) * 0.5
    strength = torch.full((rows,), 0.5, device=device)
    plausibility = torch.full((rows,), 0.05, device=device)
    tokens = torch.randint(0, vocab, (rows,), generator=generator, device=device)
    return rlvr.to(dtype), base.to(dtype), strength, plausibility, tokens


def gate(
    rlvr: Tensor, base: Tensor, strength: Tensor, plausibility: Tensor, tokens: Tensor
) -> None:
    """Stop unless the results agree with float64."""
    pair = rlvr[:16].double(), base[:16].double()
    settings = strength[:16], plausibility[:16]
    exact = reference.extrapolate(*pair, *settings).softmax(-1)
    z = ops.extrapolate(rlvr, base, strength, plausibility)[:16]
    errors = [(z.double().softmax(-1) - exact).abs().max().item()]
    statistics_ = ops.delta_logprobs(rlvr, base, tokens)
    for value, wanted in zip(
        statistics_, reference.delta_logprobs(*pair, tokens[:16]), strict=True
    ):
        errors.append(((value[:16] - wanted).abs() / wanted.abs().clamp(min=1)).max().item())
    rule = rule_for(rlvr[:16])
    q = ops.gated_extrapolate(rlvr[:16], base[:16], rule).logprobs.double().exp()
    errors.append(
        (q - gated_reference.gated_extrapolate(*pair, rule).logprobs.exp()).abs().max().item()
    )
    # Written so that NaN stops too.
    if not all(error <= TOLERANCE for error in errors):
        raise SystemExit(
            f"wrong results, errors {errors} (allowed {TOLERANCE:g}): nothing is timed"
        )


def rule_for(rlvr: Tensor) -> gated_reference.Rule:
    """The papers' rule for each row."""
    numbers = torch.tensor(rule_numbers(RULE, SAMPLING), device=rlvr.device)
    return rule_of_rows(numbers[:, None].expand(-1, len(rlvr)).contiguous())


def operations(
    scratch: Tensor,
    rlvr: Tensor,
    base: Tensor,
    strength: Tensor,
    plausibility: Tensor,
    tokens: Tensor,
    compiled: bool,
) -> dict[str, dict[str, Run]]:
    """What is compared with what; each name's first entry is ours."""

    def definition() -> Tensor:
        return reference.extrapolate(rlvr.float(), base.float(), strength, plausibility)

    def plain() -> Tensor:
        r, b = rlvr.float(), base.float()
        return r + strength[:, None] * (r.log_softmax(-1) - b.log_softmax(-1))

    def deltas() -> reference.DeltaLogprobs:
        return reference.delta_logprobs(rlvr.float(), base.float(), tokens)

    rule = rule_for(rlvr)

    def gated() -> gated_reference.Gated:
        return gated_reference.gated_extrapolate(rlvr.float(), base.float(), rule)

    extrapolations: dict[str, Run] = {
        "ours": lambda: ops.extrapolate(rlvr, base, strength, plausibility),
        "ours, in place": lambda: ops.extrapolate_(scratch, base, strength, plausibility),
        "plain": plain,
        "definition": definition,
    }
    statistics_: dict[str, Run] = {
        "ours": lambda: ops.delta_logprobs(rlvr, base, tokens),
        "definition": deltas,
    }
    rules: dict[str, Run] = {
        "ours": lambda: ops.gated_extrapolate(rlvr, base, rule),
        "definition": gated,
    }
    if compiled:
        extrapolations["plain, compiled"] = torch.compile(plain)
        extrapolations["definition, compiled"] = torch.compile(definition)
        statistics_["definition, compiled"] = torch.compile(deltas)
        rules["definition, compiled"] = torch.compile(gated)
    return {
        "extrapolate": extrapolations,
        "delta_logprobs": statistics_,
        "gated_extrapolate": rules,
    }


def measure(run: Run, restore: Run, device: str) -> float:
    """The median time of a run in milliseconds; `restore` undoes what a run in place has done."""
    timed = time_on_gpu if device.startswith("cuda") else time_on_cpu
    times: list[float] = []
    stop = -math.inf
    while len(times) < 3 or time.monotonic() < stop:
        restore()
        times.append(timed(run))
        if len(times) == 2:  # compiled and warm
            stop = time.monotonic() + SECONDS_EACH
    return statistics.median(times[2:])


def time_on_cpu(run: Run) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def time_on_gpu(run: Run) -> float:
    torch.empty(L2_BYTES, dtype=torch.uint8, device="cuda").zero_()
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def report(title: str, taken: dict[str, list[float]], rlvr: Tensor) -> None:
    print(title)
    least_bytes = 2 * rlvr.numel() * rlvr.element_size()  # each model's logits read once
    medians = {who: statistics.median(times) for who, times in taken.items()}
    for who, ms in medians.items():
        rate, ratio = least_bytes / ms / 1e6, ms / medians["ours"]
        print(f"  {who:36}{ms:9.3f}{rate:8.1f}{ratio:12.2f}x", flush=True)


def on(device: str) -> dict[str, object]:
    """Which device ran it, and with how many threads."""
    if device.startswith("cuda"):
        return {"device": torch.cuda.get_device_name(device)}
    return {"threads": torch.get_num_threads()}


if __name__ == "__main__":
    main()
