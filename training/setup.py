"""What a recipe asks for, read before the loop: objective, optional sections, base."""

from __future__ import annotations

from pathlib import Path

from rlvr_decode.training.config import Train, build
from rlvr_decode.training.engines import check_engine
from rlvr_decode.training.objectives import OBJECTIVES, Objective
from rlvr_decode.training.policy.adapted import adapter_config
from rlvr_decode.training.policy.model import named
from rlvr_decode.training.pretrain import pretrain
from rlvr_decode.training.processes.distributed import Processes
from rlvr_decode.training.rank.ranks import RankReward
from rlvr_decode.training.rank.trends import TrendSettings
from rlvr_decode.training.run.interrupt import StopRequest
from rlvr_decode.training.run.report import check_log
from rlvr_decode.training.stages.monitor import StageSettings
from rlvr_decode.training.stages.reset import ResetRule
from rlvr_decode.training.tasks.task import Corpus, Task


def find_base(config: Train, task: Task, directory: Path, stop: StopRequest) -> str | Path:
    """The checkpoint to start from: a given one, or one pretrained for this run."""
    if config.base is not None:
        return named(config.base)
    assert config.pretrain is not None
    if not isinstance(task, Corpus):
        raise ValueError(f"task {config.task.name!r} has no demonstrations to pretrain on")
    return pretrain(config, config.pretrain, task, directory, stop)


def make_objective(config: Train) -> Objective:
    """The recipe's objective, built from its options."""
    if config.objective.name not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise ValueError(f"objective.name={config.objective.name!r}: unknown; known: {known}")
    if config.objective.name == "mrpo" and config.rank is None:
        raise ValueError("objective mrpo reads rewards shaped by rank: give [rank], empty is fine")
    return OBJECTIVES[config.objective.name](**config.objective.options)


def check_sections(config: Train, processes: Processes) -> None:
    """Read every optional section, so that a wrong one is told before minutes are spent."""
    asked = {"rollout.prompts": config.rollout.prompts}
    asked |= {"evaluation.prompts": config.evaluation.prompts} if config.evaluation.every else {}
    for name, prompts in asked.items():
        if prompts < processes.size:
            raise ValueError(f"{name}={prompts}: fewer than the {processes.size} processes")
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
    check_engine(config)
    check_log(config.log)
