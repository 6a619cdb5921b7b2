"""How cost grows: with rows, vocabulary, concurrency, prompt length, group size and adapter rank.

    python benchmarks/growth.py [--rounds 3]

Small models, so that it is quick; what matters is the slope. Draws results/growth.png. Each figure
is the time for the largest size over the smallest, divided by how much larger it is: at 1 cost
grows as the size does, below 1 more slowly. Correctness is checked where it is checked for the same
code at one size: the kernels' results here, the engines' by `decode.py`'s check.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from decode_arms import SHAPE, Arm, make_pairs, plain, vllm_arm, workload
from decode_check import check
from findings import RESULTS, Finding, add_argument, append, surroundings, tell

SMALL: dict[str, Any] = SHAPE | {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
RANKS = (4, 16, 64)
NEW_TOKENS = 16


class Curve(NamedTuple):
    """Seconds of each way at each size, one for each round."""

    title: str
    size: str
    seconds: dict[str, dict[int, list[float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    add_argument(parser)
    args = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    with tempfile.TemporaryDirectory() as directory:
        os.environ.setdefault("VLLM_CACHE_ROOT", directory)
        curves = [*kernels(args.rounds), group_size(Path(directory), args.rounds)]
        curves += engines(Path(directory), args.rounds)
    for curve in curves:
        append(RESULTS / "growth.jsonl", {**curve._asdict(), **surroundings()})
    draw(curves, RESULTS / "growth.png")
    tell([found for curve in curves for found in slopes(curve)], args.findings)


def measure(
    title: str, size: str, ways: dict[str, dict[int, Callable[[], object]]], rounds: int
) -> Curve:
    """All ways at all sizes take turns; the first turn warms up."""
    seconds: dict[str, dict[int, list[float]]] = {
        way: {at: [] for at in calls} for way, calls in ways.items()
    }
    for turn in range(rounds + 1):
        for way, calls in ways.items():
            for at, call in calls.items():
                began = time.perf_counter()
                call()
                if turn:
                    seconds[way][at].append(time.perf_counter() - began)
    return Curve(title, size, seconds)


def kernels(rounds: int) -> Iterator[Curve]:
    """`extrapolate` against its definition in PyTorch."""
    import torch

    from rlvr_decode import ops
    from rlvr_decode.kernels import reference

    def both(rows: int, vocab: int) -> dict[str, Callable[[], object]]:
        generator = torch.Generator().manual_seed(0)
        base = torch.randn(rows, vocab, generator=generator)
        rlvr = (base + 0.1 * torch.randn(rows, vocab, generator=generator)).bfloat16()
        settings = torch.full((rows,), 0.5), torch.full((rows,), 0.05)
        ours = partial(ops.extrapolate, rlvr, base.bfloat16(), *settings)
        definition = partial(
            reference.extrapolate, rlvr.float(), base.bfloat16().float(), *settings
        )
        if (ours().softmax(-1) - definition().softmax(-1)).abs().max() > 1e-4:
            raise SystemExit(f"wrong results at {rows} rows of {vocab}: nothing is timed")
        return {"ours": ours, "torch": definition}

    for title, size, shapes in (
        ("extrapolate, 32 000 tokens", "rows", {n: (n, 32_000) for n in (1, 4, 16, 64)}),
        ("extrapolate, 8 rows", "vocabulary", {n: (8, n) for n in (9_500, 38_000, 152_000)}),
    ):
        made = {at: both(*shape) for at, shape in shapes.items()}
        ways = {way: {at: calls[way] for at, calls in made.items()} for way in ("ours", "torch")}
        yield measure(title, size, ways, 5 * rounds)


def group_size(directory: Path, rounds: int) -> Curve:
    """Our step of GRPO on one prompt; its group reads the prompt once."""
    import torch
    from train_step_arms import Work, our_trainer

    from rlvr_decode.testing import make_checkpoints

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    base, _ = make_checkpoints(directory, base_vocab=SMALL["vocab_size"], **_without(SMALL))
    calls: dict[int, Callable[[], object]] = {}
    for group in (2, 4, 8, 16):
        work = Work(
            base=str(base), prompts=1, group=group, prompt_tokens=128, response_tokens=32,
            micro_batch=16, steps=rounds + 1, threads=torch.get_num_threads(),
        )  # fmt: skip
        trainer = our_trainer(work, checkpointing=False)
        numbers = iter(range(1, rounds + 2))
        calls[group] = partial(
            lambda trainer, numbers: trainer.step(next(numbers)), trainer, numbers
        )
    return measure("a step of GRPO", "responses to a prompt", {"ours": calls}, rounds)


def _without(shape: dict[str, Any]) -> dict[str, Any]:
    """What `make_checkpoints` does not choose itself."""
    chosen = {"vocab_size", "max_position_embeddings", "tie_word_embeddings", "eos_token_id"}
    return {key: value for key, value in shape.items() if key not in chosen}


def engines(directory: Path, rounds: int) -> Iterator[Curve]:
    """One model, a full pair and adapter pairs of several ranks, in float32."""
    arms = make_arms(directory)
    shown = {name: arms[name] for name in ("single", "full", "adapter 16")}
    yield measure(
        f"{NEW_TOKENS} tokens for each request",
        "requests",
        {
            name: {n: partial(arm, *workload(n), NEW_TOKENS) for n in (1, 4, 16, 32)}
            for name, arm in shown.items()
        },
        rounds,
    )
    yield measure(
        "the first token",
        "prompt tokens",
        {
            name: {n: partial(arm, *workload(1, length=n), 1) for n in (64, 256, 1024)}
            for name, arm in shown.items()
        },
        rounds,
    )
    yield measure(
        f"8 requests, {NEW_TOKENS} tokens",
        "adapter rank",
        {
            name: {
                rank: partial(how(arms[f"adapter {rank}"]), *workload(8), NEW_TOKENS)
                for rank in RANKS
            }
            for name, how in (("adapter pair", lambda arm: arm), ("strength 0", plain))
        },
        rounds,
    )


def make_arms(directory: Path) -> dict[str, Arm]:
    import torch
    from transformers import AutoModelForCausalLM
    from vllm import LLM

    from rlvr_decode.engine.launch import engine_args

    flags: dict[str, Any] = {
        "max_model_len": 1040,
        "max_num_seqs": 32,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 2**28,
    }
    arms: dict[str, Arm] = {}
    for rank in RANKS:
        full, adapter = make_pairs(
            directory / str(rank),
            torch.float32,
            shape=SMALL | {"max_position_embeddings": 2048},
            rank=rank,
        )
        pairs = {f"adapter {rank}": adapter}
        if rank == 16:
            pairs["full"] = full
            arms["single"] = vllm_arm(LLM(model=str(full.rlvr.fetch()), dtype="float32", **flags))
        models = [
            AutoModelForCausalLM.from_pretrained(each.fetch()) for each in (full.base, full.rlvr)
        ]
        for name, pair in pairs.items():
            engine = LLM(**engine_args(pair, **flags))
            check(name, engine, models, "float32")
            arms[name] = vllm_arm(engine)
    return arms


def slopes(curve: Curve) -> Iterator[Finding]:
    """Round by round: the largest size's time over the smallest's, over how much larger it is."""
    for way, seconds in curve.seconds.items():
        least, most = min(seconds), max(seconds)
        pairs = zip(seconds[most], seconds[least], strict=True)
        yield Finding(
            what=f"{way}: {curve.title}, from {least} to {most} {curve.size}",
            rival=f"{most // least} × the time",
            values=[a / b / (most / least) for a, b in pairs],
            unit="",
        )


def draw(curves: list[Curve], path: Path) -> None:
    from rlvr_decode.charts.chart import Chart, Series
    from rlvr_decode.charts.png import save

    charts = [
        Chart(
            title=curve.title,
            x_label=curve.size,
            y_label="milliseconds",
            series=[series(Series, name, seconds) for name, seconds in curve.seconds.items()],
            log_x=True,
            log_y=True,
        )
        for curve in curves
    ]
    save(charts, path, columns=3)


def series(kind: Any, name: str, seconds: dict[int, list[float]]) -> Any:
    """Medians, with the range over rounds as a band."""
    sizes = sorted(seconds)

    def ms(of: Callable[[list[float]], float]) -> list[float]:
        return [1e3 * of(seconds[size]) for size in sizes]

    return kind(name=name, x=sizes, y=ms(statistics.median), low=ms(min), high=ms(max))


if __name__ == "__main__":
    main()
