"""Thousands of short requests through one engine, each compared with its own run alone.

    python benchmarks/soak.py [--requests 10000 --distinct 500 --pair tiny --form full]

First each distinct request runs by itself, in float32, in an engine that holds nothing else and
caches nothing. Then draws of them, mixed, keep an engine full that has too few KV blocks for what
it holds: prefixes are shared, requests are preempted, their slots go to others, and one in ten is
aborted at some moment. Strengths, plausibilities, gates, sampling and lengths are random.

An answer must be the one the request has alone, token by token; what an aborted request has said,
the beginning of it. In the end no block, slot or channel may hold anything, and the process must
not have grown by more than 16 MiB in the second half. Results are appended to
results/soak.jsonl; a red gate ends the process with 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from soak_requests import MAX_TOKENS, Asked, draw_request
from soak_table import render

from rlvr_decode.engine.launch import bound_kept_products

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.v1.engine.core_client import InprocClient
    from vllm.v1.engine.llm_engine import LLMEngine

    from rlvr_decode.pair import Pair

RESULTS = Path(__file__).parent / "results" / "soak.jsonl"
SLOTS, IN_FLIGHT, BLOCKS, BLOCK_TOKENS = 16, 40, 24, 32
ABORTED = 0.1
MAX_GROWTH_MIB = 16.0
SHOWN = 5  # wrong answers in the report
METRICS = ("num_preemptions", "prefix_cache_hits", "prompt_tokens", "generation_tokens")

Answer = tuple[int, ...]


@dataclass(kw_only=True, slots=True)
class Tally:
    """What came back from the mixed run."""

    finished: int = 0
    aborted: int = 0
    wrong: list[dict[str, Any]] = field(default_factory=list)
    rates_missing: int = 0
    memory_mib: list[float] = field(default_factory=list)

    @property
    def settled_mib(self) -> float:
        """Of the process, after half of the requests: PyTorch keeps a plan of each shape that it
        meets, so it settles slowly."""
        return self.memory_mib[len(self.memory_mib) // 2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--distinct", type=int, default=500)
    parser.add_argument("--pair", default="tiny")
    parser.add_argument("--form", choices=["full", "adapter"], default="full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    bound_kept_products()  # as the server does
    with tempfile.TemporaryDirectory() as directory:
        os.environ.setdefault("VLLM_CACHE_ROOT", directory)
        pair = open_pair(args.pair, args.form, Path(directory))
        report = soak(pair, requests=args.requests, distinct=args.distinct, seed=args.seed)
    report["machine"] = platform.machine()
    print(json.dumps(report))
    with args.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(report) + "\n")
    reports = [json.loads(line) for line in args.out.read_text(encoding="utf-8").splitlines()]
    args.out.with_suffix(".md").write_text(render(reports), encoding="utf-8")
    return 0 if report["passed"] else 1


def open_pair(name: str, form: str, directory: Path) -> Pair:
    """The pair, or the same as base and the low-rank part of the update."""
    from rlvr_decode.deltas import Criterion
    from rlvr_decode.extract import extract, write
    from rlvr_decode.fidelity import make_probe
    from rlvr_decode.pair import Pair

    pair = Pair.open(name)
    if form == "full":
        return pair
    # How well it stands for the full pair does not matter here: it is compared with itself.
    probe = make_probe(pair, samples=2, max_tokens=8)
    extraction = extract(pair, probe, criterion=Criterion(rank=16), max_rest=10.0)
    return write(extraction, directory / "adapter", min_correlation=-1.0)


def soak(pair: Pair, *, requests: int, distinct: int, seed: int) -> dict[str, Any]:
    """Run both engines; the figures, and whether every gate is green."""
    from vllm.version import __version__ as vllm_version

    rng = random.Random(seed)
    vocabulary = json.loads((pair.base.fetch() / "config.json").read_text())["vocab_size"]
    asked = [draw_request(rng, vocabulary) for _ in range(distinct)]
    alone = solo_answers(pair, asked)
    engine = start(
        pair, max_num_seqs=SLOTS, num_gpu_blocks_override=BLOCKS, max_num_batched_tokens=512
    )
    begun, cpu = time.monotonic(), time.process_time()
    tally = storm(engine, asked, alone, requests=requests, rng=rng)
    spent = {"wall_s": time.monotonic() - begun, "cpu_s": time.process_time() - cpu}
    engine.step()  # in which the worker hears of the last that ended
    left = leftovers(engine)
    clean = not (tally.wrong or tally.rates_missing or any(left.values()))
    flat = tally.memory_mib[-1] < tally.settled_mib + MAX_GROWTH_MIB
    report = {
        "pair": pair.name,
        "rlvr": pair.rlvr.kind,
        "runner": "v2" if engine.vllm_config.use_v2_model_runner else "v1",
        "seed": seed,
        "distinct": distinct,
        "vllm": vllm_version,
        "gated": sum(each.gated for each in asked),
        "finished": tally.finished,
        "aborted": tally.aborted,
        "wrong": len(tally.wrong),
        "first_wrong": tally.wrong[:SHOWN],
        "rates_missing": tally.rates_missing,
        **counters(engine),
        "left": left,
        "memory_mib": [round(mib, 1) for mib in tally.memory_mib],
        "settled_mib": round(tally.settled_mib, 1),
        "end_mib": round(tally.memory_mib[-1], 1),
        **{name: round(seconds, 1) for name, seconds in spent.items()},
        "passed": clean and flat,
    }
    engine.engine_core.shutdown()
    return report


def start(pair: Pair, **arguments: Any) -> LLMEngine:
    """An engine in this process, stepped by hand, so that a seed repeats a run."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from rlvr_decode.engine.launch import engine_args

    defaults = {"enforce_eager": True, "dtype": "float32", "max_model_len": 128}
    # V1 on a CPU dies on seeded prompts cut into chunks.
    defaults |= {"block_size": BLOCK_TOKENS, "enable_chunked_prefill": False}
    chosen = EngineArgs(**engine_args(pair, **(defaults | arguments)))
    return LLMEngine.from_engine_args(chosen, enable_multiprocessing=False)


def solo_answers(pair: Pair, asked: Sequence[Asked]) -> list[Answer]:
    """What each request is answered when it is the only one there ever was."""
    engine = start(
        pair, max_num_seqs=1, enable_prefix_caching=False, num_gpu_blocks_override=BLOCKS
    )
    answers = []
    for index, each in enumerate(asked):
        add(engine, str(index), each)
        outputs: list[RequestOutput] = []
        while engine.has_unfinished_requests():
            outputs = engine.step() or outputs  # type: ignore[assignment]
        answers.append(tokens_of(outputs[0]))
        rates_of(engine, str(index))
    engine.engine_core.shutdown()
    del engine
    gc.collect()
    return answers


def storm(
    engine: LLMEngine,
    asked: Sequence[Asked],
    alone: Sequence[Answer],
    *,
    requests: int,
    rng: random.Random,
) -> Tally:
    """Keep the engine full until so many requests were answered or aborted."""
    tally = Tally(memory_mib=[memory_mib()])
    running: dict[str, int] = {}
    said: dict[str, Answer] = {}
    added = 0
    while added < requests or running:
        while added < requests and len(running) < IN_FLIGHT:
            index = rng.randrange(len(asked))
            add(engine, name := f"{added}", asked[index])
            running[name], added = index, added + 1
            if added % max(1, requests // 20) == 0:
                tally.memory_mib.append(memory_mib())
        for output in engine.step():
            name, tokens = output.request_id, tokens_of(output)  # type: ignore[arg-type]
            said[name] = tokens
            if output.finished:
                index = running.pop(name)
                tally.finished += 1
                compare(tally, name, asked[index], said.pop(name), alone[index])
                missing = asked[index].gated and len(rates_of(engine, name)) != len(tokens)
                tally.rates_missing += missing
        # A request lives for as many steps as it has tokens, and as many again in the queue.
        if running and rng.random() < ABORTED * IN_FLIGHT / MAX_TOKENS:
            name = rng.choice(list(running))
            engine.abort_request([name])
            index, tokens = running.pop(name), said.pop(name, ())
            tally.aborted += 1
            compare(tally, name, asked[index], tokens, alone[index][: len(tokens)])
            rates_of(engine, name)
    tally.memory_mib.append(memory_mib())
    return tally


def compare(tally: Tally, name: str, asked: Asked, tokens: Answer, alone: Answer) -> None:
    if tokens != alone:
        settings = {"extrapolation": asked.extrapolation, "sampling": asked.sampling}
        tally.wrong.append({"name": name, **settings, "tokens": tokens, "alone": alone})


def add(engine: LLMEngine, name: str, asked: Asked) -> None:
    from vllm import TokensPrompt

    from rlvr_decode import Extrapolation
    from rlvr_decode.params import TICKET

    ticket = {TICKET: name} if asked.gated else {}
    settings = Extrapolation(**asked.extrapolation)
    params = settings.sampling_params(**asked.sampling, extra_args=ticket)
    engine.add_request(name, TokensPrompt(prompt_token_ids=list(asked.prompt)), params)


def tokens_of(output: RequestOutput) -> Answer:
    return tuple(output.outputs[0].token_ids)


def rates_of(engine: LLMEngine, ticket: str) -> list[float]:
    """The rates of intervention told of a gated request; taken, they are gone."""
    from rlvr_decode.interventions import intervention_rates

    told = engine.collective_rpc("take_side_channel", args=(ticket,))[0]
    return intervention_rates(told)


def counters(engine: LLMEngine) -> dict[str, int]:
    found = {metric.name: getattr(metric, "value", 0) for metric in engine.get_metrics()}
    return {name: int(found[f"vllm:{name}"]) for name in METRICS}


def leftovers(engine: LLMEngine) -> Mapping[str, int]:
    """What an engine that holds no request still holds; every number must be 0."""
    from rlvr_decode.engine.side_channel import channel_of

    core = cast("InprocClient", engine.engine_core).engine_core
    scheduler: Any = core.scheduler
    manager = scheduler.kv_cache_manager
    pool = manager.block_pool
    runner = engine.model_executor.driver_worker.worker.model_runner
    groups = manager.coordinator.single_type_managers
    held = {f"requests_of_group_{i}": len(group.req_to_blocks) for i, group in enumerate(groups)}
    return {
        "requests": len(scheduler.requests) + len(runner.requests),
        "blocks": pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),  # one is vLLM's own
        **held,
        "channels": len(channel_of(engine.vllm_config)._chunks),
    }


def memory_mib() -> float:
    """Resident memory, without what garbage holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    raise SystemExit(main())
