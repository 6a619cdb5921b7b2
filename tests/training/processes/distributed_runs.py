"""The runs that test_distributed.py compares, and what one of several processes does with them."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from rlvr_decode.training.config import (
    Adapter,
    Checkpoint,
    Evaluation,
    Log,
    Objective,
    Optim,
    Rollout,
    Task,
    Train,
)
from rlvr_decode.training.processes.distributed import processes
from rlvr_decode.training.run.directory import claim
from rlvr_decode.training.run.interrupt import Stopped, StopRequest
from rlvr_decode.training.tasks.task import Prompt
from rlvr_decode.training.trainer import learn


class Digits:
    """Reward: whether there are two digits in the response, and a little for each."""

    def prompt(self, index, *, seed, split):
        return Prompt(text="say " * (1 + index % 3), answer="")

    def reward(self, prompt, response):
        digits = sum(character.isdigit() for character in response)
        return float(digits >= 2) + 0.1 * digits * ("x" in prompt.text)


def runs(base: str, out: str) -> dict[str, Train]:
    """By name; five prompts and mini-batches of two, so that a process is idle at times."""
    config = Train(
        name="run",
        base=base,
        out=out,
        task=Task(name="digits"),
        rollout=Rollout(prompts=5, group=6, max_new_tokens=6, max_rounds=4),
        optim=Optim(steps=3, lr=1e-2, warmup=0, micro_batch=4, mini_batch=2),
        evaluation=Evaluation(every=3, prompts=5),
        checkpoint=Checkpoint(every=3),
        log=Log(curves=False),
        threads=1,
    )
    geora = Adapter(kind="geora", options={"rank": 4, "alpha": 8.0})
    whole_batches = replace(config.optim, mini_batch=None, gradient_checkpointing=True)
    return {
        "weights": replace(config, objective=Objective(name="gspo")),
        "listwise": replace(
            config,
            adapter=geora,
            objective=Objective(name="lpo_fwd"),
            optim=replace(config.optim, micro_batch=7),
        ),
        "dynamic": replace(
            config, objective=Objective(name="dapo"), optim=whole_batches, reset={"every": 2}
        ),
        "greedy": replace(config, adapter=geora, objective=Objective(name="remax")),
    }


def train_all(base: str, out: str, stopped: str) -> None:
    """Every run twice, plain and sharded; and one that the second process alone is to stop."""
    with processes() as group:
        for way in ("plain", "sharded"):
            for name, config in runs(base, f"{out}/{way}").items():
                train(replace(config, name=name, shard=way == "sharded"), group, StopRequest())
        config = replace(runs(base, stopped)["weights"], shard=True)
        try:
            train(config, group, StopRequest(requested=not group.is_first))
        except Stopped as message:
            print(json.dumps([group.rank, str(message)]))


def train(config, group, stop):
    directory = Path(config.out) / config.name
    with group.first_before_others():
        claim(config)
    learn(config, Digits(), directory, group, stop)


if __name__ == "__main__":
    train_all(*sys.argv[1:])
