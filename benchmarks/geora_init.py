"""Starting GeoRA on a model of 1.5 B parameters: seconds, how well, and PEFT's PiSSA beside it.

    python benchmarks/geora_init.py [--layers 28 --threads 2]

Every linear matrix of Qwen2.5-1.5B's shape, with synthetic heavy-tailed weights in bfloat16, gets
its masks and factors as `attach` makes them; making up the weights is not timed. Beside the wall
clock stands the processor time, which other work on the machine does not change. The start's
energy, Σσ² over the leading 16 triples of the masked weight, is held against the optimum, from
float64 eigenvalues, on every matrix of one layer. No time is printed if that falls short.

On the first layers ours takes turns with PEFT's PiSSA, which starts from singular vectors of the
weight as it is: exactly (`pissa`, its default) and sketched (`pissa_niter_16`, its documented quick
way). Our own PiSSA is the like-for-like comparison. Results are appended to
results/geora_init.jsonl.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from findings import RESULTS, Finding, add_argument, append, ratios, surroundings, tell
from torch import Tensor, nn

from rlvr_decode.lowrank import gram_svd
from rlvr_decode.training.adapters.config import AdapterConfig
from rlvr_decode.training.adapters.geora import GeoRAConfig, geometry_masks
from rlvr_decode.training.adapters.singular import PiSSAConfig

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
ALL_LAYERS = 28
ENERGY_BAR, SECONDS_BAR = 0.98, 90
CONFIG = GeoRAConfig()
PISSA = PiSSAConfig(rank=CONFIG.rank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=6, help="timed; scaled to all 28")
    parser.add_argument("--rounds", type=int, default=2, help="layers that PEFT takes turns on")
    parser.add_argument("--threads", type=int, default=2)
    add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    energy = {name: captured(synthetic(shape, seed=0)) for name, shape in SHAPES.items()}
    print("energy of the start, relative to the optimum:")
    for name, share in energy.items():
        print(f"  {name:10} {share:.4f}")
    if min(energy.values()) < ENERGY_BAR:
        raise SystemExit(f"below {ENERGY_BAR}: no timing is reported")

    clocks = [Clock.of_layer(partial(ours, CONFIG), layer) for layer in range(args.layers)]
    scale = ALL_LAYERS / args.layers
    spent = {name: scale * sum(clock.wall[name] for clock in clocks) for name in SHAPES}
    result = {
        "layers": args.layers,
        "seconds": round(sum(spent.values()), 1),
        "processor_seconds": round(scale * sum(clock.processor for clock in clocks), 1),
        "seconds_by_matrix": {name: round(each, 1) for name, each in spent.items()},
        "energy_by_matrix": {name: round(share, 4) for name, share in energy.items()},
        "least_energy": round(min(energy.values()), 4),
        "one_layer": beside_peft(args.rounds),
        **surroundings(),
        "threads": args.threads,
    }
    append(RESULTS / "geora_init.jsonl", result)
    text = report(result)
    (RESULTS / "geora_init.md").write_text(text, encoding="utf-8")
    print(text)
    tell(findings(result), args.findings)


class Clock:
    """What it took to start on the matrices of one layer."""

    def __init__(self) -> None:
        self.wall = dict.fromkeys(SHAPES, 0.0)
        self.processor = 0.0

    @classmethod
    def of_layer(cls, start: Callable[[Tensor], object], layer: int) -> Clock:
        clock = cls()
        for number, (name, shape) in enumerate(SHAPES.items()):
            weight_MN = synthetic(shape, seed=layer * len(SHAPES) + number)
            began, busy = time.perf_counter(), time.process_time()
            start(weight_MN)
            clock.wall[name] = time.perf_counter() - began
            clock.processor += time.process_time() - busy
        return clock


def ours(config: AdapterConfig, weight_MN: Tensor) -> object:
    return config.anchors(weight_MN.float(), generator=torch.Generator().manual_seed(0))


def peft(start: Any, weight_MN: Tensor) -> object:
    """PEFT's adapter on a layer of this weight, which it starts as it is made."""
    from peft import LoraConfig, get_peft_model

    rows, columns = weight_MN.shape
    model = nn.Sequential(nn.Linear(columns, rows, bias=False, device="meta"))
    model[0].weight = nn.Parameter(weight_MN, requires_grad=False)
    config = LoraConfig(r=CONFIG.rank, target_modules=["0"], init_lora_weights=start)
    return get_peft_model(model, config)


def beside_peft(rounds: int) -> dict[str, list[float]]:
    """Seconds for one layer, of each way in each round."""
    ways: dict[str, Callable[[Tensor], object]] = {
        "GeoRA": partial(ours, CONFIG),
        "PiSSA": partial(ours, PISSA),
        "PEFT, pissa": partial(peft, "pissa"),
        "PEFT, pissa_niter_16": partial(peft, "pissa_niter_16"),
    }
    for way in ways.values():  # imports, and a first call of each kernel
        way(synthetic((64, 64), seed=0))
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for layer in range(rounds):
        for name, way in ways.items():
            taken[name].append(round(sum(Clock.of_layer(way, layer).wall.values()), 3))
    return taken


def findings(result: dict[str, Any]) -> list[Finding]:
    one_layer = result["one_layer"]
    made = result["layers"]
    scaled = f"timed on {made} of {ALL_LAYERS} layers and scaled" if made < ALL_LAYERS else ""
    return [
        Finding(
            what="GeoRA's start, all linear matrices of a 1.5 B model",
            rival="–",
            values=[result["seconds"]],
            unit="s",
            at_most=SECONDS_BAR,
            note=scaled,
        ),
        Finding(
            what="GeoRA's start, energy captured",
            rival="the optimum",
            values=[result["least_energy"]],
            at_least=ENERGY_BAR,
        ),
        *(
            Finding(
                what=f"{mine}'s start, one layer's matrices",
                rival=f"PEFT's PiSSA, {theirs}",
                values=ratios(one_layer[mine], one_layer[f"PEFT, {theirs}"]),
            )
            for mine in ("GeoRA", "PiSSA")
            for theirs in ("pissa", "pissa_niter_16")
        ),
    ]


def report(result: dict[str, Any]) -> str:
    """The table of one run, as Markdown."""
    rows = [
        f"| {name} | {rows} × {columns} | {result['seconds_by_matrix'][name]:.1f} | "
        f"{result['energy_by_matrix'][name]:.4f} |"
        for name, (rows, columns) in SHAPES.items()
    ]
    beside = [
        f"| {name} | {', '.join(map(str, seconds))} |"
        for name, seconds in result["one_layer"].items()
    ]
    return (
        "# Starting GeoRA on a model of 1.5 B parameters\n\n"
        f"Masks and factors of rank {CONFIG.rank} for every linear matrix of {ALL_LAYERS} "
        f"layers: **{result['seconds']:.0f} s** on {result['threads']} CPU threads "
        f"({result['processor_seconds']:.0f} s of processor time), at least "
        f"**{result['least_energy']:.4f}** of the energy that this rank can hold. "
        f"Synthetic weights, torch {result['versions']['torch']}; {result['layers']} layers were "
        "timed.\n\n"
        "| matrix | shape | seconds, all layers | energy over the optimum |\n"
        "| --- | --- | ---: | ---: |\n" + "\n".join(rows) + "\n\n"
        "One layer's matrices, seconds of each round in which all took turns:\n\n"
        "| start | seconds |\n| --- | --- |\n" + "\n".join(beside) + "\n"
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


if __name__ == "__main__":
    main()
