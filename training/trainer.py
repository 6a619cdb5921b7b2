"""Reinforcement learning with verifiable rewards, from prompts to a pair.

Read `run`, then `Trainer.step` in `step.py`: sample a group of responses to each prompt, let the
task judge them, let the objective turn rewards into a loss, move the policy, repeat. The trainer
knows no objective: everything in which papers differ is in `objectives/`.

What is left out: a value model, and rollouts from any policy but the present one.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from rlvr_decode.pair import FILE, write_pair
from rlvr_decode.training.config import Train, build
from rlvr_decode.training.processes.distributed import Processes, processes
from rlvr_decode.training.run.checkpoint import Checkpoints, appearing_whole
from rlvr_decode.training.run.directory import claim, provenance
from rlvr_decode.training.run.disk import saving
from rlvr_decode.training.run.interrupt import Stopped, StopRequest, stop_on_signals
from rlvr_decode.training.run.lock import held
from rlvr_decode.training.run.memory import give_back_memory
from rlvr_decode.training.run.report import reporting
from rlvr_decode.training.setup import check_sections, find_base, make_objective
from rlvr_decode.training.step import Trainer
from rlvr_decode.training.tasks.data import make_task
from rlvr_decode.training.tasks.questions import Rewards, Rows, in_memory
from rlvr_decode.training.tasks.task import Task


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
    newest checkpoint, to the same bits; a finished run is left as it is. SIGTERM or Ctrl-C ends
    it after the step at hand with `Stopped`. Launched as several processes, they share the work.
    """
    directory = Path(config.out) / config.name
    with ExitStack() as stack:
        group = stack.enter_context(processes(config.process_time_out))
        if group.is_first:
            stack.enter_context(held(directory))
        stop = stack.enter_context(stop_on_signals())
        with group.first_before_others():
            claim(config)
        if not (directory / FILE).exists():
            learn(config, task, directory, group, stop)
    return directory / FILE


def learn(config: Train, task: Task, directory: Path, group: Processes, stop: StopRequest) -> None:
    """The loop, from the newest checkpoint to the finished pair."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    objective = make_objective(config)
    check_sections(config, group)
    with group.first_before_others():
        base = find_base(config, task, directory, stop)
    trainer = Trainer(config, task, objective, base, group)

    checkpoints = Checkpoints(
        directory=directory / "checkpoints", keep=config.checkpoint.keep, writes=group.is_first
    )
    found = checkpoints.restore(trainer.policy, [trainer.optimizer])
    state = found or {"step": 0, "finished": False, "accuracies": {"base": trainer.held_out()}}
    trainer.restore(state)

    after = state["step"] if found else -1
    told = reporting(config, directory, after=after, speaks=group.is_first)
    with closing(trainer.engine), told as report:
        if not found:
            report.step(0, state["accuracies"]["base"])
        steps = 0 if state["finished"] else config.optim.steps
        for step in range(state["step"] + 1, steps + 1):
            metrics = trainer.step(step)
            give_back_memory()
            state["step"], state["finished"] = step, step == steps
            if is_due(step, config.evaluation.every) or state["finished"]:
                state["accuracies"]["rlvr"] = held_out = trainer.held_out()
                metrics |= held_out
                state["finished"] |= reached(config.evaluation.stop_at, held_out)
            metrics |= trainer.resets.after(step, metrics)
            state |= trainer.state()
            report.step(step, metrics, trainer.judged)
            stopping = group.most(stop.requested) and not state["finished"]
            if is_due(step, config.checkpoint.every) or state["finished"] or stopping:
                checkpoints.save(trainer.policy, [trainer.optimizer], state)
            if stopping:
                raise Stopped(f"step {step}")
            if state["finished"]:
                break
        report.draw()
        package(config, trainer, directory, base, state)


def package(
    config: Train, trainer: Trainer, directory: Path, base: str | Path, state: dict[str, Any]
) -> None:
    """Write the rlvr half, in which every process takes part, and the pair."""
    rlvr = directory / "rlvr"
    if not trainer.processes.is_first:
        trainer.save(rlvr)
        return
    with appearing_whole(rlvr) as scratch:
        trainer.save(scratch)
    with saving(directory / FILE):
        write_pair(
            directory,
            name=config.name,
            base=base,
            rlvr=rlvr,
            defaults=config.defaults,
            provenance=provenance(config, steps=state["step"], accuracies=state["accuracies"]),
        )


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens now."""
    return every > 0 and step % every == 0


def reached(target: float | None, held_out: dict[str, float]) -> bool:
    """Whether held-out accuracy is as high as the run was asked to go."""
    return target is not None and bool(held_out) and held_out["held_out"] >= target
