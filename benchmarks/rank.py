"""Trajectory rank of a batch of rollouts: one banded Gram matrix against one SVD per window.

    python benchmarks/rank.py [--responses 64 --tokens 1024 --width 2048 --threads 1]

Three baselines, each a loop over centred windows in float32, from what is first written down to
what a careful author would write: `torch.linalg.svd(window)` with its defaults (full V),
`svd(window, full_matrices=False)` and `svdvals(window)`. They are timed on evenly spread windows
of the same batch and scaled to all windows; ours is timed whole. No number is printed unless
ranks agree with float64 singular values of the same windows first. Writes
benchmarks/results/rank.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rlvr_decode.training.rank.spectral import trajectory_rank, window_ranks

RESULTS = Path(__file__).parent / "results" / "rank.md"
WINDOW, STRIDE = 64, 32
TOLERANCE = 1e-5
REPEATS = 3
# How many windows each baseline is timed on: enough for about a second.
BASELINES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "svd, defaults": (8, lambda window_TD: torch.linalg.svd(window_TD).S),
    "svd, thin": (64, lambda window_TD: torch.linalg.svd(window_TD, full_matrices=False).S),
    "svdvals": (128, torch.linalg.svdvals),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--responses", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    hidden_BTD = hidden_states(args.responses, args.tokens, args.width).to(args.device)
    mask_BT = torch.ones(hidden_BTD.shape[:2], dtype=torch.bool, device=args.device)

    error = gate(hidden_BTD, mask_BT)
    print(f"largest relative error against float64 singular values: {error:.1e}")
    if error > TOLERANCE:
        raise SystemExit(f"wrong ranks (allowed {TOLERANCE:.0e}): no timing is reported")

    windows = args.responses * ((args.tokens - WINDOW) // STRIDE + 1)
    seconds = {"ours": median_time(lambda: trajectory_rank(hidden_BTD, mask_BT), REPEATS)}
    for name, (count, spectrum) in BASELINES.items():
        sample = spread(hidden_BTD, count)
        per_run = median_time(partial(naive_ranks, sample, spectrum), REPEATS)
        seconds[name] = per_run / len(sample) * windows
    what = "CPU seconds of one thread" if args.threads == 1 else f"{args.threads} threads"
    where = platform.machine() if args.device == "cpu" else args.device
    about = f"{what}, {where}, torch {torch.__version__}"
    text = report(seconds, windows, tuple(hidden_BTD.shape), about, error)
    print(text)
    RESULTS.write_text(text, encoding="utf-8")


def hidden_states(responses: int, tokens: int, width: int) -> Tensor:
    """Random walks with a common mean and a decaying spectrum, more like hidden states than noise.

    The scales span three decades, so the gate also sees small singular values.
    """
    generator = torch.Generator().manual_seed(0)
    scale_D = torch.logspace(0, -3, width)
    hidden_BTD = torch.empty(responses, tokens, width)
    for hidden_TD in hidden_BTD:
        steps_TD = torch.randn(tokens, width, generator=generator) * scale_D
        hidden_TD.copy_(steps_TD + 0.1 * steps_TD.cumsum(0) + 5)
    return hidden_BTD


def gate(hidden_BTD: Tensor, mask_BT: Tensor) -> float:
    """The largest relative error of the windows of the first and the last response."""
    ends = torch.tensor([0, len(hidden_BTD) - 1], device=hidden_BTD.device)
    ranks_BW = window_ranks(hidden_BTD[ends], mask_BT[ends], window=WINDOW, stride=STRIDE)
    errors = [
        (ranks_BW[row, i] / exact_rank(window_TD) - 1).abs()
        for row, b in enumerate(ends)
        for i, window_TD in enumerate(hidden_BTD[b].unfold(0, WINDOW, STRIDE).mT)
    ]
    return float(torch.stack(errors).max())


def exact_rank(window_TD: Tensor) -> Tensor:
    window_TD = window_TD.double()
    return rank_of(torch.linalg.svdvals(window_TD - window_TD.mean(0)))


def naive_ranks(windows: list[Tensor], spectrum: Callable[[Tensor], Tensor]) -> list[float]:
    return [float(rank_of(spectrum(window_TD - window_TD.mean(0)))) for window_TD in windows]


def rank_of(singular: Tensor) -> Tensor:
    rank: Tensor = torch.special.entr(singular / singular.sum()).sum().exp()
    return rank


def spread(hidden_BTD: Tensor, count: int) -> list[Tensor]:
    """`count` windows spread evenly over the batch."""
    responses, tokens = hidden_BTD.shape[:2]
    places = torch.linspace(0, responses * (tokens - WINDOW) - 1, count).long().tolist()
    pairs = (divmod(place, tokens - WINDOW) for place in places)
    return [hidden_BTD[b, start : start + WINDOW] for b, start in pairs]


def median_time(call: Callable[[], object], repeats: int) -> float:
    """Median seconds, of CPU time where one thread does all; the first call is not counted."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if alone else time.perf_counter
    times = []
    for _ in range(repeats + 1):
        start = clock()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(clock() - start)
    return statistics.median(times[1:])


def report(
    seconds: dict[str, float], windows: int, shape: tuple[int, ...], about: str, error: float
) -> str:
    responses, tokens, width = shape
    lines = [
        "# Trajectory rank",
        "",
        f"`benchmarks/rank.py`: {responses} responses × {tokens} tokens × width {width}, "
        f"{windows} windows of {WINDOW} with stride {STRIDE}; {about}. Largest relative error "
        f"against float64 singular values: {error:.1e}.",
        "",
        "| method | seconds | per window | ours is faster by |",
        "|---|---|---|---|",
    ]
    for name, total in seconds.items():
        ratio = "" if name == "ours" else f"{total / seconds['ours']:.1f} ×"
        lines.append(f"| {name} | {total:.2f} | {total / windows * 1e6:.0f} µs | {ratio} |")
    lines += [
        "",
        "Every other method is a loop over centred float32 windows, timed on a spread of them and "
        "scaled to all. Naive means the call as one first writes it, `torch.linalg.svd(window)`, "
        "which also computes a full V; `full_matrices=False` and `svdvals` are what a careful "
        "author would write, and the fair comparison.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
