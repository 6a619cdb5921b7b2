"""Starting GeoRA on a model of 1.5 B parameters: seconds, and how good the sketched start is.

    python benchmarks/geora_init.py [--layers 28 --threads 2 --out geora_init.jsonl]

Every linear matrix of Qwen2.5-1.5B's shape, with synthetic heavy-tailed weights in bfloat16, gets
its masks and factors as `attach` makes them; making up the weights is not timed. Beside the wall
clock stands the processor time, which other work on the machine does not change. The start's
energy, Σσ² over the leading 16 triples of the masked weight, is held against the optimum, from
float64 eigenvalues, on every matrix of one layer. No time is printed if that falls short.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvr_decode.lowrank import gram_svd
from rlvr_decode.training.adapters.geora import GeoRAConfig, geometry_masks

HIDDEN, KEY_VALUE, INTERMEDIATE = 1536, 256, 8960
SHAPES = {
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (KEY_VALUE, HIDDEN),
    "v_proj": (KEY_VALUE, HIDDEN),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (INTERMEDIATE, HIDDEN),
    "up_proj": (INTERMEDIATE, HIDDEN),
    "down_proj": (HIDDEN, INTERMEDIATE),
}
ENERGY_BAR = 0.98
CONFIG = GeoRAConfig()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, help="append to this JSONL file; a table goes beside it"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    energy = {name: captured(synthetic(shape, seed=0)) for name, shape in SHAPES.items()}
    print("energy of the start, relative to the optimum:")
    for name, share in energy.items():
        print(f"  {name:10} {share:.4f}")
    if min(energy.values()) < ENERGY_BAR:
        raise SystemExit(f"below {ENERGY_BAR}: no timing is reported")

    load = os.getloadavg()[0]
    seconds, processor = dict.fromkeys(SHAPES, 0.0), 0.0
    for layer in range(args.layers):
        for number, (name, shape) in enumerate(SHAPES.items()):
            wall, busy = timed(synthetic(shape, seed=layer * len(SHAPES) + number))
            seconds[name] += wall
            processor += busy
    result = {
        "benchmark": "geora_init",
        "layers": args.layers,
        "threads": args.threads,
        "seconds": round(sum(seconds.values()), 1),
        "processor_seconds": round(processor, 1),
        "seconds_by_matrix": {name: round(spent, 1) for name, spent in seconds.items()},
        "energy_by_matrix": {name: round(share, 4) for name, share in energy.items()},
        "least_energy": round(min(energy.values()), 4),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        with args.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
        args.out.with_suffix(".md").write_text(report(result), encoding="utf-8")


def report(result: dict[str, Any]) -> str:
    """The table of one run, as Markdown."""
    rows = [
        f"| {name} | {rows} × {columns} | {result['seconds_by_matrix'][name]:.1f} | "
        f"{result['energy_by_matrix'][name]:.4f} |"
        for name, (rows, columns) in SHAPES.items()
    ]
    return (
        "# Starting GeoRA on a model of 1.5 B parameters\n\n"
        f"Masks and factors of rank {CONFIG.rank} for every linear matrix of {result['layers']} "
        f"layers: **{result['seconds']:.0f} s** on {result['threads']} CPU threads "
        f"({result['processor_seconds']:.0f} s of processor time), at least "
        f"**{result['least_energy']:.4f}** of the energy that this rank can hold. "
        f"Synthetic weights, torch {result['torch']}.\n\n"
        "| matrix | shape | seconds, all layers | energy over the optimum |\n"
        "| --- | --- | ---: | ---: |\n" + "\n".join(rows) + "\n"
    )


def synthetic(shape: tuple[int, int], *, seed: int) -> Tensor:
    """A power-law spectrum over noise of uneven rows and columns, as pretrained weights have."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    directions = 256
    left_MK = torch.randn(rows, directions, generator=generator)
    right_KN = torch.randn(directions, columns, generator=generator)
    values_K = torch.arange(1, directions + 1) ** -0.6
    noise_MN = torch.randn(shape, generator=generator)
    noise_MN *= torch.exp(0.3 * torch.randn(rows, 1, generator=generator))
    noise_MN *= torch.exp(0.3 * torch.randn(1, columns, generator=generator))
    return (0.02 * (0.04 * (left_MK * values_K) @ right_KN + noise_MN)).bfloat16()


def captured(weight_MN: Tensor) -> float:
    """Energy of the start on the masked weight over the most that its rank can hold."""
    weight_MN = weight_MN.float()
    B_MR = CONFIG.anchors(weight_MN, generator=torch.Generator().manual_seed(0)).B_MR
    assert B_MR is not None
    # The same seed sketches the same masks.
    masks = geometry_masks(
        weight_MN,
        rank=CONFIG.rank,
        rho=CONFIG.rho,
        generator=torch.Generator().manual_seed(0),
    )
    masked_MN = (weight_MN * masks.union_MN).double()
    optimum, _ = gram_svd(masked_MN, CONFIG.rank)
    left_MR, _ = torch.linalg.qr(B_MR.double())
    return float((left_MR.T @ masked_MN).square().sum() / optimum.S_R.square().sum())


def timed(weight_MN: Tensor) -> tuple[float, float]:
    """Wall-clock and processor seconds of one matrix's start."""
    start, busy = time.perf_counter(), time.process_time()
    CONFIG.anchors(weight_MN.float(), generator=torch.Generator().manual_seed(0))
    return time.perf_counter() - start, time.process_time() - busy


if __name__ == "__main__":
    main()
