"""The products of an adapter pair's layers on a CPU: both models by our kernel, one by vLLM's.

    python benchmarks/layers.py [--rows 1 8 32 512 --dtype bfloat16 --rounds 9]

The four products of each of the eight layers of `decode.py`'s model, one after another, so that
weights come from memory as they do in a step. `vllm` is its packed product (oneDNN) of N rows, what
one model costs; `pair` our kernel of 2N rows, half of them with the update taken away; `rlvr` our
kernel of N rows on the same weights, what requests at strength 0 cost. First all are compared with
float64; on a wrong result nothing is timed. Results are appended to results/layers.jsonl.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from findings import RESULTS, Finding, add_argument, append, ratios, surroundings, tell
from torch import Tensor

from rlvr_decode.kernels import delta_linear as kernel
from rlvr_decode.places import cache_directory

# Outputs, inputs and summed rank of q, k and v; o; gate and up; down.
SHAPES = ((1280, 768, 48), (768, 768, 16), (4608, 768, 32), (768, 2304, 16))
LAYERS = 8
# Of the norm of a result, against float64: one rounding of it, and one of A x.
TOLERANCE = {torch.bfloat16: 4e-3, torch.float32: 1e-6}


class Layer(NamedTuple):
    """One product's weights, in every form that is timed."""

    vllm: Callable[[Tensor], Tensor]
    packed: Tensor
    down: Tensor
    outputs: int

    def pair(self, x: Tensor) -> Tensor:
        return kernel.delta_linear(x, self.packed, self.down, None, self.outputs)

    def rlvr(self, x: Tensor) -> Tensor:
        return kernel.delta_linear(x, self.packed, None, None, self.outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 512])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / "layers.jsonl")
    add_argument(parser)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    if not kernel.takes(torch.empty(2, 2, dtype=dtype), torch.cpu.get_capabilities()):
        raise SystemExit(f"{args.dtype}: this CPU's instructions are not those of the kernel")
    kernel.load(cache_directory("kernels"))
    layers = [make_layer(*shape, dtype, seed) for seed in range(LAYERS) for shape in SHAPES]
    found: list[Finding] = []
    for rows in args.rows:
        inputs = {width: torch.randn(2 * rows, width).to(dtype) for width in (768, 2304)}
        ways = {
            "vllm": lambda layer, x: layer.vllm(x[: len(x) // 2]),
            "pair": Layer.pair,
            "rlvr": lambda layer, x: layer.rlvr(x[: len(x) // 2]),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.rounds + 1):
            for way, run in ways.items():
                begin = time.perf_counter()
                for layer, (_, width, _) in zip(layers, SHAPES * LAYERS, strict=True):
                    run(layer, inputs[width])
                taken[way].append(time.perf_counter() - begin)
        taken = {way: times[1:] for way, times in taken.items()}  # the first round warms up
        append(args.out, {"rows": rows, "dtype": args.dtype, "seconds": taken} | surroundings())
        what = f"products of {LAYERS} layers, {rows} {'row' if rows == 1 else 'rows'}, {args.dtype}"
        found += [
            Finding(
                what=f"{what}: {ours}",
                rival="vLLM's product (oneDNN), one model",
                values=ratios(taken[way], taken["vllm"]),
            )
            for way, ours in (("pair", "both models"), ("rlvr", "rlvr alone"))
        ]
    tell(found, args.findings)


def make_layer(outputs: int, inputs: int, rank: int, dtype: torch.dtype, seed: int) -> Layer:
    """Random weights, packed, once their products are checked."""
    from vllm import _custom_ops

    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(outputs, inputs, generator=generator) * inputs**-0.5).to(dtype)
    up = torch.randn(outputs, rank, generator=generator).to(dtype)
    down = (torch.randn(rank, inputs, generator=generator) * 0.1 * inputs**-0.5).to(dtype)
    handler = _custom_ops.create_onednn_mm(weight.t(), 32)
    layer = Layer(
        vllm=lambda x: _custom_ops.onednn_mm(handler, x, None),
        packed=kernel.pack(torch.cat([weight, -up], dim=1)),
        down=kernel.pack(down),
        outputs=outputs,
    )
    x = torch.randn(6, inputs, generator=generator).to(dtype)
    plain = x.double() @ weight.double().T
    update = x.double() @ down.double().T @ up.double().T
    expected = torch.cat([plain[:3], (plain - update)[3:]])
    found = ((layer.vllm(x), plain), (layer.rlvr(x), plain), (layer.pair(x), expected))
    errors = [((got.double() - wanted).norm() / wanted.norm()).item() for got, wanted in found]
    # Written so that NaN stops too.
    if not all(error <= TOLERANCE[dtype] for error in errors):
        raise SystemExit(f"wrong results, errors {errors}: nothing is timed")
    return layer


if __name__ == "__main__":
    main()
