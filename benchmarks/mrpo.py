"""MRPO's whole recipe against GRPO at equal compute: pass@1, pass@16, effective rank, three seeds.

    python benchmarks/mrpo.py [--arms grpo cold_mrpo] [--seeds 0 1 2] [--runs DIR]

Every arm starts from the base of the bundled pair and spends the same number of *token passes*:
a token generated or looked at counts 1, a token trained on 3, prompts included, the student's by
its share of the teacher's size. So the cold arms pay for their exploration (SOE) and supervised
epoch (SFT) with steps of reinforcement learning. CPU seconds are reported beside it.

Measured at each budget on the same held-out prompts with 16 samples, at temperature 1. A run that
was stopped goes on, and what is measured is not run again. Writes benchmarks/results/mrpo.jsonl
and mrpo.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mrpo_table import markdown
from soe import configured
from torch import Tensor

from rlvr_decode.pair import Pair
from rlvr_decode.training.config import Objective, Train, load
from rlvr_decode.training.evaluation.boundary import pass_curve
from rlvr_decode.training.policy.model import open_model
from rlvr_decode.training.rank.ranks import RankReward, response_ranks
from rlvr_decode.training.recipe import read_recipe
from rlvr_decode.training.rollout.rollout import TransformersRollout
from rlvr_decode.training.run.checkpoint import Checkpoints
from rlvr_decode.training.run.metrics import MetricsLog
from rlvr_decode.training.setup import make_objective
from rlvr_decode.training.sft import SFT, train_on_traces
from rlvr_decode.training.soe.generator import Sample, TransformersGenerator
from rlvr_decode.training.soe.run import collect, read_records, summary
from rlvr_decode.training.step import Trainer
from rlvr_decode.training.tasks.data import make_task
from rlvr_decode.training.tasks.task import Prompt, judge
from rlvr_decode.training.tasks.traces import read_traces

RESULTS = Path(__file__).parent / "results"
BUDGETS = (1_000_000, 2_000_000)
PROMPTS, SAMPLES, KS = 256, 16, (1, 4, 16)
RANK = RankReward(window=16, stride=8)
TRAINED = 3  # passes of a token trained on: forward, and a backward twice as dear
RL = Objective(name="grpo", options={"aggregation": "token_mean", "eps": 1e-4})


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """Whether to start cold on SOE's traces, and the objective of the reinforcement learning."""

    cold: bool
    objective: str


ARMS = {
    "grpo": Arm(cold=False, objective="grpo"),
    "mrpo": Arm(cold=False, objective="mrpo"),
    "cold_grpo": Arm(cold=True, objective="grpo"),
    "cold_mrpo": Arm(cold=True, objective="mrpo"),
}


@dataclass(slots=True)
class Spent:
    """What an arm has used so far."""

    passes: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Metered:
    """A generator that counts the tokens its model has seen, times `weight`."""

    inner: TransformersGenerator
    weight: float
    spent: Spent

    def render(self, prompt: Prompt) -> str:
        return self.inner.render(prompt)

    def generate(
        self, texts: Sequence[str], *, n: int, max_tokens: int, temperature: float, seed: int
    ) -> list[list[Sample]]:
        samples = self.inner.generate(
            texts, n=n, max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        for text, found in zip(texts, samples, strict=True):
            self._count([text] * n)
            self._count([sample.text for sample in found])
        return samples

    def hidden(self, prefixes: Sequence[str], continuations: Sequence[str]) -> Tensor:
        self._count([*prefixes, *continuations])
        return self.inner.hidden(prefixes, continuations)

    def _count(self, texts: Sequence[str]) -> None:
        self.spent.passes += self.weight * sum(len(self.inner.tokenizer.encode(t)) for t in texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = MetricsLog(RESULTS / "mrpo.jsonl")
    for seed in args.seeds:
        for name in args.arms:
            run_arm(name, seed, args.runs, log)
    (RESULTS / "mrpo.md").write_text(markdown(log.read()), encoding="utf-8")


def run_arm(name: str, seed: int, runs: Path, log: MetricsLog) -> None:
    """One arm with one seed: a line at every budget; nothing if it has them all."""
    if not lines_of(log, arm="base"):
        trainer = make_trainer(ARMS["grpo"], base(), seed=0)
        log.write(0, {"arm": "base", "seed": 0, **measured(trainer)})
    if len(lines_of(log, arm=name, seed=seed)) == len(BUDGETS):
        return
    start, spent = base(), Spent()
    if ARMS[name].cold:
        explored(seed, runs, log)
        start = cold_start(seed, runs, log)
        (line,) = lines_of(log, cold=seed)
        spent = Spent(line["passes"], line["seconds"])
    trainer = make_trainer(ARMS[name], start, seed)
    checkpoints = Checkpoints(directory=runs / f"{name}-{seed}" / "checkpoints", keep=1)
    for step, budget in steps_to_budgets(trainer, spent, checkpoints):
        if lines_of(log, arm=name, seed=seed, budget=budget):
            continue
        found = {"arm": name, "seed": seed, "budget": budget, "rl_steps": step}
        used = {"passes": round(spent.passes), "seconds": round(spent.seconds, 1)}
        log.write(0, found | used | measured(trainer))
        print(name, seed, log.read()[-1] | {"counts": ...}, flush=True)


def steps_to_budgets(
    trainer: Trainer, spent: Spent, checkpoints: Checkpoints
) -> Iterator[tuple[int, int]]:
    """Learn, and stop at the last step within each budget: (steps so far, budget)."""
    policy, optimizer, settings = trainer.policy, trainer.optimizer, trainer.config.rollout
    state = checkpoints.restore(policy, [optimizer]) or {"step": 0, "dearest": 0.0}
    spent.passes, spent.seconds = state.get("spent", (spent.passes, spent.seconds))
    prompt_tokens = len(trainer.tokenizer.encode(trainer.prompts(1)[0].text))
    for budget in BUDGETS:
        while spent.passes + state["dearest"] <= budget:
            state["step"] += 1
            before = time.process_time()
            tokens = trainer.step(state["step"])["length"] + prompt_tokens
            passes = settings.prompts * settings.group * tokens * (1 + TRAINED)
            state["dearest"] = max(state["dearest"], passes)
            spent.passes += passes
            spent.seconds += time.process_time() - before
            checkpoints.save(policy, [optimizer], state | {"spent": astuple(spent)})
        yield state["step"], budget


def make_trainer(arm: Arm, start: Path, seed: int) -> Trainer:
    """A trainer as the recipe `tiny` sets it, with the arm's objective."""
    config: Train = load("tiny", [f"seed={seed}", "kl_to_base=false"])
    config = replace(
        config, base=str(start), pretrain=None, objective=replace(RL, name=arm.objective)
    )
    if arm.objective == "mrpo":
        config = replace(config, rank={"window": RANK.window, "stride": RANK.stride})
    task = make_task(config.task.name, config.task.options)
    return Trainer(config, task, make_objective(config), start)


def measured(trainer: Trainer) -> dict[str, Any]:
    """pass@k, effective rank and length on held-out prompts, and correct samples per prompt."""
    engine = TransformersRollout(
        model=trainer.policy, tokenizer=trainer.tokenizer, layer=RANK.layer
    )
    prompts = [trainer.task.prompt(i, seed=99, split="held_out") for i in range(PROMPTS)]
    rollouts = engine.sample(
        [prompt.text for prompt in prompts],
        group=SAMPLES,
        max_new_tokens=trainer.config.rollout.max_new_tokens,
        temperature=1.0,
        seed=5,
    )
    asked = [prompt for prompt in prompts for _ in range(SAMPLES)]
    rewards, _ = judge(trainer.task, asked, rollouts.texts)
    counts = torch.tensor(rewards).view(PROMPTS, SAMPLES).sum(1).int().tolist()
    curve = {f"pass@{k}": round(v, 4) for k, v in pass_curve(counts, SAMPLES, KS).items()}
    rank_B = response_ranks(trainer.policy, rollouts, RANK)
    length = rollouts.mask_BT.sum().item() / len(rewards)
    return {
        **curve,
        "rank": round(rank_B.mean().item(), 3),
        "length": round(length, 2),
        "counts": counts,
    }


def explored(seed: int, runs: Path, log: MetricsLog) -> None:
    """SOE from the teacher: a line with what it found and spent."""
    if lines_of(log, soe=seed):
        return
    config = configured("tiny", "orthogonal", seed, runs)
    before, spent = time.process_time(), Spent()
    models = [open_model(source) for source in (config.teacher, config.student)]
    sizes = [sum(p.numel() for p in model.parameters()) for model, _ in models]
    metered = [
        Metered(TransformersGenerator(*opened, batch=config.batch), size / sizes[0], spent)
        for opened, size in zip(models, sizes, strict=True)
    ]
    collect(config, teacher=metered[0], student=metered[1])
    used = {"passes": spent.passes, "seconds": round(time.process_time() - before, 1)}
    log.write(0, {"soe": seed} | used | summary(read_records(runs / config.name)))


def cold_start(seed: int, runs: Path, log: MetricsLog) -> Path:
    """One epoch on the traces of SOE; its line sums exploration and epoch."""
    traces = runs / f"soe-tiny-orthogonal-{seed}" / "traces.jsonl"
    overrides = [f"name=sft-{seed}", f"out={runs}", f"seed={seed}", f"traces={traces}"]
    config = replace(read_recipe(SFT, "sft", "tiny", overrides), base=str(base()))
    before = time.process_time()
    target = train_on_traces(config)
    if not lines_of(log, cold=seed):
        (soe,) = lines_of(log, soe=seed)
        _, tokenizer = open_model(target)
        texts = [trace.prompt + trace.response for trace in read_traces(traces)]
        tokens = sum(len(tokenizer.encode(text)) + 1 for text in texts)
        passes = soe["passes"] + TRAINED * tokens * config.epochs
        seconds = soe["seconds"] + round(time.process_time() - before, 1)
        trainer = make_trainer(ARMS["grpo"], target, seed)
        found = {"traces": len(texts), "passes": passes, "seconds": seconds}
        log.write(0, {"cold": seed, **found, **measured(trainer)})
    return target


def base() -> Path:
    return Pair.open("tiny").base.fetch()


def lines_of(log: MetricsLog, **wanted: Any) -> list[dict[str, Any]]:
    lines = log.read()
    return [x for x in lines if all(x.get(key) == value for key, value in wanted.items())]


if __name__ == "__main__":
    main()
