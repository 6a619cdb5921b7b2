"""Reinforcement learning with verifiable rewards, from prompts to a pair.

Read `train`, then `Trainer.step`: sample a group of responses to each prompt, let the task judge
them, let the objective turn rewards into a loss, take one gradient step, repeat. The trainer knows
no objective: everything in which papers differ is in `objectives/`.

What is left out: a value model, and more than one gradient step per batch of rollouts; the policy
that is updated is the one that sampled (on-policy).

B responses, T response tokens; the responses to one prompt are neighbours.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rlvr_decode.pair import FILE, write_pair
from rlvr_decode.training.checkpoint import Checkpoints, appearing_whole
from rlvr_decode.training.config import Train
from rlvr_decode.training.data import make_task
from rlvr_decode.training.evaluate import accuracy
from rlvr_decode.training.logprobs import response_logprobs
from rlvr_decode.training.metrics import MetricsLog, postfix
from rlvr_decode.training.model import open_model, save_model
from rlvr_decode.training.objectives import OBJECTIVES, LossInputs, Objective, merge_metrics
from rlvr_decode.training.optim import adamw, set_lr
from rlvr_decode.training.pretrain import pretrain
from rlvr_decode.training.rollout import RolloutEngine, Rollouts, TransformersRollout
from rlvr_decode.training.run import claim, draw_seed, provenance
from rlvr_decode.training.task import Corpus, Prompt, Task

_SHOWN = {
    "reward": "reward",
    "held_out": "held-out",
    "entropy": "entropy",
    "kl_ref": "kl",
    "tokens_per_second": "tok/s",
}
_REMEDY = "Nothing was updated, and the newest checkpoint is intact; lower optim.lr and start anew"


def train(config: Train) -> Path:
    """Train the rlvr half of a pair; returns the path of its `pair.json`.

    Everything lives in the directory `out/name`. Starting the same run again resumes it from its
    newest checkpoint, to the same bits; a finished run is left as it is.
    """
    run = claim(config)
    if (run / FILE).exists():
        return run / FILE
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    task = make_task(config.task.name, config.task.options)
    objective = make_objective(config)
    base = find_base(config, task, run)
    trainer = Trainer(config, task, objective, base)

    checkpoints = Checkpoints(directory=run / "checkpoints", keep=config.checkpoint.keep)
    log = MetricsLog(run / "metrics.jsonl")
    state = checkpoints.restore(trainer.policy, [trainer.optimizer])
    if state is None:
        before = trainer.held_out()
        state = {"step": 0, "finished": False, "accuracies": {"base": before}}
        log.rewind(-1)
        log.write(0, before)
    log.rewind(state["step"])

    steps = 0 if state["finished"] else config.optim.steps
    with tqdm(desc="train", total=config.optim.steps, initial=state["step"]) as bar:
        for step in range(state["step"] + 1, steps + 1):
            metrics = trainer.step(step)
            state["step"], state["finished"] = step, step == steps
            if is_due(step, config.evaluation.every) or state["finished"]:
                state["accuracies"]["rlvr"] = held_out = trainer.held_out()
                metrics |= held_out
                state["finished"] |= reached(config.evaluation.stop_at, held_out)
            log.write(step, metrics)
            bar.set_postfix(postfix(metrics, _SHOWN), refresh=False)
            bar.update()
            if is_due(step, config.checkpoint.every) or state["finished"]:
                checkpoints.save(trainer.policy, [trainer.optimizer], state)
            if state["finished"]:
                break

    with appearing_whole(run / "rlvr") as scratch:
        save_model(trainer.policy, trainer.tokenizer, scratch)
    write_pair(
        run,
        name=config.name,
        base=base,
        rlvr=run / "rlvr",
        defaults=config.defaults,
        provenance=provenance(config, steps=state["step"], accuracies=state["accuracies"]),
    )
    return run / FILE


def find_base(config: Train, task: Task, run: Path) -> str | Path:
    """The checkpoint to start from: a given one, or one pretrained for this run."""
    if config.base is not None:
        return config.base
    assert config.pretrain is not None
    if not isinstance(task, Corpus):
        raise ValueError(f"task {config.task.name!r} has no demonstrations to pretrain on")
    return pretrain(config, config.pretrain, task, run)


class Trainer:
    """The policy, what it is measured against, and one step of learning."""

    def __init__(self, config: Train, task: Task, objective: Objective, base: str | Path) -> None:
        self.config = config
        self.task = task
        self.objective = objective
        self.policy, self.tokenizer = open_model(base)
        self.reference = None
        if config.kl_to_base or "ref_logp_BT" in objective.needs:
            self.reference = open_model(base)[0].requires_grad_(False)
        self.engine: RolloutEngine = TransformersRollout(
            model=self.policy, tokenizer=self.tokenizer
        )
        self.optimizer = adamw(self.policy, config.optim)

    def step(self, step: int) -> dict[str, float]:
        """Sample, judge, and move the policy once; every draw depends on the step alone."""
        started = time.perf_counter()
        # Dropout, where a model has any, draws from the global generator.
        torch.manual_seed(draw_seed("update", self.config.seed, step))
        prompts = self.prompts(step)
        rollouts = self.sample(prompts, step)
        if not rollouts.logp_BT.isfinite().all():
            raise FloatingPointError(
                f"step {step}: the policy gives no numbers any more. {_REMEDY}"
            )
        rewards_B = self.judge(prompts, rollouts, self.config.rollout.group)
        batch = self.objective.prepare(self.loss_inputs(step, prompts, rollouts, rewards_B))
        metrics = self.update(step, batch, rollouts)
        tokens = int(rollouts.mask_BT.sum())
        return {
            "reward": rewards_B.mean().item(),
            # −log p of the sampled tokens is an unbiased estimate of the policy's entropy.
            "entropy": -rollouts.logp_BT.sum().item() / tokens,
            "length": tokens / len(rewards_B),
            "finished": rollouts.finished_B.float().mean().item(),
            **metrics,
            "tokens_per_second": tokens / (time.perf_counter() - started),
        }

    def prompts(self, step: int) -> list[Prompt]:
        """The prompts of a step, counted from 1."""
        count = self.config.rollout.prompts
        return [
            self.task.prompt(index, seed=self.config.seed, split="train")
            for index in range((step - 1) * count, step * count)
        ]

    def sample(self, prompts: list[Prompt], step: int, *, greedy: bool = False) -> Rollouts:
        """A group of responses to each prompt, or the greedy one."""
        settings = self.config.rollout
        return self.engine.sample(
            [prompt.text for prompt in prompts],
            group=1 if greedy else settings.group,
            max_new_tokens=settings.max_new_tokens,
            temperature=0.0 if greedy else settings.temperature,
            seed=draw_seed("rollout", self.config.seed, step),
        )

    def judge(self, prompts: list[Prompt], rollouts: Rollouts, group: int) -> Tensor:
        """The reward of each response, [B]."""
        asked = [prompt for prompt in prompts for _ in range(group)]
        pairs = zip(asked, rollouts.texts, strict=True)
        return torch.tensor([self.task.reward(prompt, text) for prompt, text in pairs])

    def loss_inputs(
        self, step: int, prompts: list[Prompt], rollouts: Rollouts, rewards_B: Tensor
    ) -> LossInputs:
        """What the objective reads. On-policy, the sampler's log p are the old policy's."""
        group = self.config.rollout.group
        inputs = LossInputs(
            logp_BT=rollouts.logp_BT,
            old_logp_BT=rollouts.logp_BT,
            rollout_logp_BT=rollouts.logp_BT,
            mask_BT=rollouts.mask_BT,
            rewards_B=rewards_B,
            group_B=torch.arange(len(prompts)).repeat_interleave(group),
        )
        if self.reference is not None:
            with torch.no_grad():
                inputs = replace(inputs, ref_logp_BT=self.logprobs(self.reference, rollouts)[0])
        if "greedy_rewards_B" in self.objective.needs:
            greedy = self.judge(prompts, self.sample(prompts, step, greedy=True), 1)
            inputs = replace(inputs, greedy_rewards_B=greedy.repeat_interleave(group))
        return inputs

    def update(self, step: int, batch: LossInputs, rollouts: Rollouts) -> dict[str, float]:
        """One gradient step; micro-batches add up to the gradient of the whole batch."""
        settings = self.config.optim
        self.policy.train()
        parts = []
        for micro in batch.split(settings.micro_batch):
            logp_BT, entropy_BT = self.logprobs(
                self.policy, rollouts.select(micro.require("row_B"))
            )
            if "entropy_BT" in self.objective.needs:
                micro = replace(micro, entropy_BT=entropy_BT)
            loss, metrics = self.objective(replace(micro, logp_BT=logp_BT))
            torch.autograd.backward(loss)
            parts.append(metrics)
        grad_norm = nn.utils.clip_grad_norm_(self.policy.parameters(), settings.max_grad_norm)
        if not torch.isfinite(grad_norm):
            raise FloatingPointError(
                f"step {step}: the gradient's norm is {grad_norm.item()}. {_REMEDY}"
            )
        lr = settings.lr * min(1.0, step / max(settings.warmup, 1))
        set_lr([self.optimizer], lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        merged = {name: value.item() for name, value in merge_metrics(parts).items()}
        return merged | {"grad_norm": grad_norm.item(), "lr": lr}

    def logprobs(self, model: Any, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        return response_logprobs(model, rollouts, temperature=self.config.rollout.temperature)

    def held_out(self) -> dict[str, float]:
        """Accuracy on held-out prompts, the same at every evaluation of a run."""
        settings = self.config.evaluation
        if settings.every == 0:
            return {}
        result = accuracy(
            self.engine,
            self.task,
            prompts=settings.prompts,
            samples=settings.samples,
            max_new_tokens=self.config.rollout.max_new_tokens,
            temperature=self.config.rollout.temperature,
            seed=self.config.seed,
        )
        return {"held_out": result.mean, "held_out_se": result.standard_error}


def make_objective(config: Train) -> Objective:
    """The recipe's objective, built from its options."""
    if config.objective.name not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise ValueError(f"objective.name={config.objective.name!r}: unknown; known: {known}")
    objective = OBJECTIVES[config.objective.name](**config.objective.options)
    if objective.dynamic_sampling:
        raise ValueError(
            f"objective {config.objective.name}: this trainer does not replace groups of equal "
            "rewards; set objective.options.dynamic_sampling=false"
        )
    return objective


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens now."""
    return every > 0 and step % every == 0


def reached(target: float | None, held_out: dict[str, float]) -> bool:
    """Whether held-out accuracy is as high as the run was asked to go."""
    return target is not None and bool(held_out) and held_out["held_out"] >= target
