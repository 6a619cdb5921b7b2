"""Reinforcement learning with verifiable rewards, from prompts to a pair.

Read `run`, then `Trainer.step` in `step.py`: sample a group of responses to each prompt, let the
task judge them, let the objective turn rewards into a loss, move the policy, repeat. The trainer
knows no objective: everything in which papers differ is in `objectives/`.

What is left out: a value model, and rollouts from any policy but the present one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rlvr_decode.pair import FILE, write_pair
from rlvr_decode.training.adapted import adapter_config
from rlvr_decode.training.checkpoint import Checkpoints, appearing_whole
from rlvr_decode.training.config import Train, build
from rlvr_decode.training.data import make_task
from rlvr_decode.training.metrics import MetricsLog, postfix
from rlvr_decode.training.objectives import OBJECTIVES, Objective
from rlvr_decode.training.pretrain import pretrain
from rlvr_decode.training.questions import Rewards, Rows, in_memory
from rlvr_decode.training.ranks import RankReward
from rlvr_decode.training.reset import ResetRule
from rlvr_decode.training.run import claim, provenance
from rlvr_decode.training.stages import StageSettings
from rlvr_decode.training.step import Trainer
from rlvr_decode.training.task import Corpus, Task
from rlvr_decode.training.trends import TrendSettings

_SHOWN = {
    "reward": "reward",
    "held_out": "held-out",
    "entropy": "entropy",
    "kl_ref": "kl",
    "tokens_per_second": "tok/s",
}


def train(
    model: str | Path,
    rewards: Rewards,
    dataset: Rows,
    *,
    held_out: Rows | None = None,
    **options: Any,
) -> Path:
    """Train a model on questions with checkable answers; returns the path of the `pair.json`.

    model     a checkpoint directory or hub id.
    rewards   a function (response, answer) -> number, or the name of one; several are summed.
    dataset   rows with "prompt" and "answer"; `held_out` likewise, for evaluation.
    options   anything a recipe may set: name="mine", optim={"lr": 1e-6}, adapter={"kind": "geora"}.

    >>> train("Qwen/Qwen3-0.6B", "last_number", rows, optim={"steps": 50})  # doctest: +SKIP
    """
    task, settings = in_memory(rewards, dataset, held_out)
    values = {"name": "trained", **options, "base": str(model), "task": settings}
    return run(build(Train, values), task)


def train_recipe(config: Train) -> Path:
    """Train as a recipe says; returns the path of the `pair.json`."""
    return run(config, make_task(config.task.name, config.task.options))


def run(config: Train, task: Task) -> Path:
    """Train the rlvr half of a pair; returns the path of its `pair.json`.

    Everything lives in the directory `out/name`. Starting the same run again resumes it from its
    newest checkpoint, to the same bits; a finished run is left as it is.
    """
    directory = claim(config)
    if (directory / FILE).exists():
        return directory / FILE
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    objective = make_objective(config)
    check_sections(config)
    base = find_base(config, task, directory)
    trainer = Trainer(config, task, objective, base)

    checkpoints = Checkpoints(directory=directory / "checkpoints", keep=config.checkpoint.keep)
    log = MetricsLog(directory / "metrics.jsonl")
    state = checkpoints.restore(trainer.policy, [trainer.optimizer])
    if state is None:
        before = trainer.held_out()
        state = {"step": 0, "finished": False, "accuracies": {"base": before}}
        log.rewind(-1)
        log.write(0, before)
    log.rewind(state["step"])
    trainer.restore(state)

    steps = 0 if state["finished"] else config.optim.steps
    with tqdm(desc="train", total=config.optim.steps, initial=state["step"]) as bar:
        for step in range(state["step"] + 1, steps + 1):
            metrics = trainer.step(step)
            state["step"], state["finished"] = step, step == steps
            if is_due(step, config.evaluation.every) or state["finished"]:
                state["accuracies"]["rlvr"] = held_out = trainer.held_out()
                metrics |= held_out
                state["finished"] |= reached(config.evaluation.stop_at, held_out)
            metrics |= trainer.resets.after(step, metrics)
            state |= trainer.state()
            log.write(step, metrics)
            bar.set_postfix(postfix(metrics, _SHOWN), refresh=False)
            bar.update()
            if is_due(step, config.checkpoint.every) or state["finished"]:
                checkpoints.save(trainer.policy, [trainer.optimizer], state)
            if state["finished"]:
                break

    with appearing_whole(directory / "rlvr") as scratch:
        trainer.save(scratch)
    write_pair(
        directory,
        name=config.name,
        base=base,
        rlvr=directory / "rlvr",
        defaults=config.defaults,
        provenance=provenance(config, steps=state["step"], accuracies=state["accuracies"]),
    )
    return directory / FILE


def find_base(config: Train, task: Task, directory: Path) -> str | Path:
    """The checkpoint to start from: a given one, or one pretrained for this run."""
    if config.base is not None:
        return config.base
    assert config.pretrain is not None
    if not isinstance(task, Corpus):
        raise ValueError(f"task {config.task.name!r} has no demonstrations to pretrain on")
    return pretrain(config, config.pretrain, task, directory)


def make_objective(config: Train) -> Objective:
    """The recipe's objective, built from its options."""
    if config.objective.name not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise ValueError(f"objective.name={config.objective.name!r}: unknown; known: {known}")
    if config.objective.name == "mrpo" and config.rank is None:
        raise ValueError("objective mrpo reads rewards shaped by rank: give [rank], empty is fine")
    return OBJECTIVES[config.objective.name](**config.objective.options)


def check_sections(config: Train) -> None:
    """Read every optional section, so that a wrong one is told before minutes are spent."""
    for settings, values, name in (
        (RankReward, config.rank, "rank"),
        (StageSettings, config.stages, "stages"),
        (ResetRule, config.reset, "reset"),
        (TrendSettings, config.verl, "verl"),
    ):
        if values is not None:
            build(settings, values, name)
    if config.adapter is not None:
        adapter_config(config.adapter)


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens now."""
    return every > 0 and step % every == 0


def reached(target: float | None, held_out: dict[str, float]) -> bool:
    """Whether held-out accuracy is as high as the run was asked to go."""
    return target is not None and bool(held_out) and held_out["held_out"] >= target
