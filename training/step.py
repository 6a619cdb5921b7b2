"""One step of learning: sample, judge, and move the policy.

B responses, T response tokens; the responses to one prompt are neighbours.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvr_decode.training.adapted import adapt, write_adapter
from rlvr_decode.training.config import Train, build
from rlvr_decode.training.dynamic_sampling import Collected, Judged, collect
from rlvr_decode.training.held_out import HeldOut
from rlvr_decode.training.logprobs import check_head, response_logprobs
from rlvr_decode.training.model import open_model, save_model
from rlvr_decode.training.mrpo import mrpo_metrics
from rlvr_decode.training.objectives import LossInputs, Objective
from rlvr_decode.training.optim import adamw
from rlvr_decode.training.ranks import RankReward, ranked_rewards
from rlvr_decode.training.resetting import Resets
from rlvr_decode.training.rollout import RolloutEngine, Rollouts, TransformersRollout
from rlvr_decode.training.run import draw_seed
from rlvr_decode.training.staging import Staging
from rlvr_decode.training.task import Prompt, Task, fill_skipped, final_answers, judge, render
from rlvr_decode.training.trends import Trends, TrendSettings
from rlvr_decode.training.update import REMEDY, update


class Trainer:
    """The policy, what it is measured against, and one step of learning."""

    def __init__(self, config: Train, task: Task, objective: Objective, base: str | Path) -> None:
        self.config = config
        self.task = task
        self.objective = objective
        self.rank = None if config.rank is None else build(RankReward, config.rank, "rank")
        self.trends = None
        if "bonus_B" in objective.needs:
            self.trends = Trends(build(TrendSettings, config.verl or {}, "verl"))
        self.staging = Staging(config.stages)
        self.evaluation = HeldOut(config)
        self.policy, self.tokenizer = open_model(base)
        check_head(self.policy)
        if config.optim.gradient_checkpointing:
            self.policy.gradient_checkpointing_enable({"use_reentrant": False})
        directory = Path(config.out) / config.name
        self.adapter = self.reference = None
        if config.adapter is not None:
            start = directory / "adapter"
            self.adapter = adapt(self.policy, config.adapter, seed=config.seed, directory=start)
        self.compared = config.kl_to_base or "ref_logp_BT" in objective.needs
        if self.compared and self.adapter is None:
            self.reference = open_model(base)[0].requires_grad_(False)
        self.engine: RolloutEngine = TransformersRollout(
            model=self.policy,
            tokenizer=self.tokenizer,
            layer=self.kept_layer(),
        )
        self.optimizer = adamw(self.policy, config.optim)
        self.resets = Resets(
            config.reset,
            policy=self.policy,
            reference=self.reference,
            optimizer=self.optimizer,
            directory=directory / "references",
        )
        self.judging: Counter[str] = Counter()

    def step(self, step: int) -> dict[str, Any]:
        """Sample, judge, and move the policy; every draw depends on the step alone."""
        started = time.perf_counter()
        # Dropout, where a model has any, draws from the global generator.
        torch.manual_seed(draw_seed("update", self.config.seed, step))
        self.judging.clear()
        (prompts, rollouts, rewards_B), rounds, informative = self.collect(step)
        group_B = torch.arange(len(prompts)).repeat_interleave(self.config.rollout.group)
        shaped_B, rank_B = rewards_B, None
        if self.rank is not None:
            shaped_B, rank_B = ranked_rewards(
                self.policy, rollouts, rewards_B >= 1, group_B, self.rank
            )
        batch = self.objective.prepare(self.loss_inputs(step, prompts, rollouts, shaped_B))
        metrics: dict[str, Any] = dict(self.judging)
        if rank_B is not None and batch.advantages_BT is not None:
            credit_B = batch.advantages_BT[:, 0]
            metrics |= mrpo_metrics(credit_B, rewards_B >= 1, rank_B, group_B)
        if self.objective.dynamic_sampling:
            metrics |= {"sampling_rounds": rounds, "informative": informative}
        batch, found = self.staging.observe(
            batch,
            rollouts,
            rewards_B,
            answers=final_answers(self.task, rollouts.texts),
            rank_B=rank_B,
        )
        metrics |= found
        metrics |= update(
            step,
            batch,
            rollouts,
            policy=self.policy,
            optimizer=self.optimizer,
            objective=self.objective,
            logprobs=self.logprobs,
            settings=self.config.optim,
        )
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

    def collect(self, step: int) -> Collected:
        """The prompts, responses and rewards of a step; informative groups alone, if asked for."""
        if not self.objective.dynamic_sampling:
            return Collected(self.draw(step), 1, 1.0)
        settings = self.config.rollout
        return collect(
            lambda number: self.draw(step, number),
            group=settings.group,
            prompts=settings.prompts,
            max_rounds=settings.max_rounds,
        )

    def draw(self, step: int, number: int = 0) -> Judged:
        """One round of sampling and judging."""
        prompts = self.prompts(step, number)
        rollouts = self.sample(prompts, step, number=number)
        if not rollouts.logp_BT.isfinite().all():
            raise FloatingPointError(f"step {step}: the policy gives no numbers any more. {REMEDY}")
        return Judged(prompts, rollouts, self.judge(prompts, rollouts, self.config.rollout.group))

    def prompts(self, step: int, number: int = 0) -> list[Prompt]:
        """The prompts of a step, counted from 1, and of a round of it, counted from 0."""
        settings = self.config.rollout
        rounds = settings.max_rounds if self.objective.dynamic_sampling else 1
        first = ((step - 1) * rounds + number) * settings.prompts
        return [
            self.task.prompt(index, seed=self.config.seed, split="train")
            for index in range(first, first + settings.prompts)
        ]

    def sample(
        self, prompts: list[Prompt], step: int, *, number: int = 0, greedy: bool = False
    ) -> Rollouts:
        """A group of responses to each prompt, or the greedy one."""
        settings = self.config.rollout
        purpose = f"rollout/{number}" if number else "rollout"
        with self.autocast():
            return self.engine.sample(
                [render(prompt, self.tokenizer) for prompt in prompts],
                group=1 if greedy else settings.group,
                max_new_tokens=settings.max_new_tokens,
                temperature=0.0 if greedy else settings.temperature,
                seed=draw_seed(purpose, self.config.seed, step),
            )

    def judge(self, prompts: list[Prompt], rollouts: Rollouts, group: int) -> Tensor:
        """The reward of each response, [B]; one that was skipped gets its group's mean."""
        asked = [prompt for prompt in prompts for _ in range(group)]
        rewards, counts = judge(self.task, asked, rollouts.texts)
        self.judging.update(counts)
        return torch.tensor(fill_skipped(rewards, group), dtype=torch.float32)

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
        if self.compared:
            inputs = replace(inputs, ref_logp_BT=self.reference_logprobs(rollouts))
        if "greedy_rewards_B" in self.objective.needs:
            greedy = self.judge(prompts, self.sample(prompts, step, greedy=True), 1)
            inputs = replace(inputs, greedy_rewards_B=greedy.repeat_interleave(group))
        if self.trends is not None:
            inputs = replace(inputs, bonus_B=self.trends.bonus(self.policy, rollouts))
        return inputs

    def kept_layer(self) -> int | None:
        """Whose hidden states the sampler keeps: what ranks are taken of, if any are."""
        layers = {self.rank.layer} if self.rank is not None else set()
        layers |= {self.trends.settings.layer} if self.trends is not None else set()
        if len(layers) > 1:
            raise ValueError(f"rank.layer and verl.layer differ ({sorted(layers)}): keep one layer")
        if not layers and self.config.stages is not None:
            return -1
        return layers.pop() if layers else None

    def logprobs(self, rollouts: Rollouts, model: Any = None) -> tuple[Tensor, Tensor]:
        """log p and entropy of the responses under the policy, or another model."""
        with self.autocast():
            return response_logprobs(
                model or self.policy, rollouts, temperature=self.config.rollout.temperature
            )

    @torch.no_grad()
    def reference_logprobs(self, rollouts: Rollouts) -> Tensor:
        """log p under the base, which is what an adapter's policy is without it."""
        if self.adapter is None:
            return self.logprobs(rollouts, self.reference)[0]
        with self.adapter.disabled():
            return self.logprobs(rollouts)[0]

    def autocast(self) -> torch.autocast:
        device = self.policy.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.optim.bf16)

    def held_out(self) -> dict[str, float]:
        """Accuracy and reach on held-out prompts, the same at every evaluation of a run."""
        return self.evaluation.measure(self.engine, self.task, self.tokenizer)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights and optimiser."""
        trends = {} if self.trends is None else self.trends.state()
        return self.staging.state() | self.resets.state() | self.evaluation.state() | trends

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        for part in (self.staging, self.resets, self.evaluation, self.trends):
            if part is not None:
                part.restore(state)

    def save(self, directory: Path) -> None:
        """Write the rlvr half: the adapter as LoRA, or the whole model."""
        if self.adapter is None:
            save_model(self.policy, self.tokenizer, directory)
        else:
            write_adapter(self.adapter, directory, base=self.config.base)
