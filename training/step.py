"""One step of learning: sample, judge, and move the policy.

B responses, T response tokens; the responses to one prompt are neighbours.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvr_decode.evaluate.sampling import rendered
from rlvr_decode.training.config import Train, build
from rlvr_decode.training.engines import make_engine
from rlvr_decode.training.evaluation.held_out import HeldOut
from rlvr_decode.training.objectives import LossInputs, Objective
from rlvr_decode.training.policy.logprobs import TokenLogprobs
from rlvr_decode.training.policy.optim import adamw
from rlvr_decode.training.policy.policies import Policies
from rlvr_decode.training.processes.distributed import Processes
from rlvr_decode.training.rank.mrpo import mrpo_metrics
from rlvr_decode.training.rank.ranks import RankReward, ranked_rewards
from rlvr_decode.training.rank.trends import Trends, TrendSettings
from rlvr_decode.training.rollout.dynamic_sampling import Collected, Judged, collect, gathered
from rlvr_decode.training.rollout.rollout import Rollouts
from rlvr_decode.training.run.directory import draw_seed
from rlvr_decode.training.stages.resetting import Resets
from rlvr_decode.training.stages.staging import Staging
from rlvr_decode.training.tasks.task import Prompt, Task, fill_skipped, final_answers, judge
from rlvr_decode.training.update import REMEDY, update


class Trainer:
    """The policy, what it is measured against, and one step of learning."""

    def __init__(
        self,
        config: Train,
        task: Task,
        objective: Objective,
        base: str | Path,
        processes: Processes | None = None,
    ) -> None:
        self.config = config
        self.processes = processes or Processes()
        self.task = task
        self.objective = objective
        self.rank = None if config.rank is None else build(RankReward, config.rank, "rank")
        self.trends = None
        if "bonus_B" in objective.needs:
            self.trends = Trends(build(TrendSettings, config.verl or {}, "verl"))
        self.staging = Staging(config.stages)
        self.evaluation = HeldOut(config)
        self.compared = config.kl_to_base or "ref_logp_BT" in objective.needs
        self.policies = Policies(config, base, compared=self.compared, processes=self.processes)
        self.policy, self.tokenizer = self.policies.policy, self.policies.tokenizer
        self.engine = make_engine(config, self.policies, base, layer=self.kept_layer())
        # Whether the engine still has the policy of before.
        self.moved = True
        self.optimizer = adamw(self.policy, config.optim)
        self.resets = Resets(
            config.reset,
            policy=self.policy,
            reference=self.policies.reference,
            optimizer=self.optimizer,
            directory=Path(config.out) / config.name / "references",
            writes=self.processes.is_first,
        )
        self.judging: Counter[str] = Counter()

    def step(self, step: int) -> dict[str, Any]:
        """Sample, judge, and move the policy; every draw depends on the step alone."""
        started = time.perf_counter()
        # Dropout, where a model has any, draws from the global generator.
        torch.manual_seed(draw_seed("update", self.config.seed, step))
        self.judging.clear()
        with self.policies.whole():
            self.judged, rounds, informative = self.collect(step)
            prompts, rollouts, rewards_B = self.judged
            group_B = self.group_ids(prompts)
            shaped_B, rank_B = rewards_B, None
            if self.rank is not None:
                shaped_B, rank_B = ranked_rewards(
                    self.policy, rollouts, rewards_B >= 1, group_B, self.rank
                )
            batch = self.objective.prepare(self.loss_inputs(step, prompts, rollouts, shaped_B))
        metrics: dict[str, Any] = self.processes.merged(self.judging)
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
            policies=self.policies,
            optimizer=self.optimizer,
            objective=self.objective,
            settings=self.config.optim,
        )
        self.moved = True
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
        """One round of sampling and judging, in which every process has a share."""
        prompts = self.prompts(step, number)
        mine = self.processes.share(prompts)
        first, _ = self.processes.bounds(len(prompts))
        rollouts = self.sample(mine, step, number=number, first=first)
        rewards_B = self.judge(mine, rollouts, self.config.rollout.group)
        judged = gathered(Judged(prompts, rollouts, rewards_B), self.tokenizer, self.processes)
        if not judged.rollouts.logp_BT.isfinite().all():
            raise FloatingPointError(f"step {step}: the policy gives no numbers any more. {REMEDY}")
        return judged

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
        self,
        prompts: Sequence[Prompt],
        step: int,
        *,
        number: int = 0,
        first: int = 0,
        greedy: bool = False,
    ) -> Rollouts:
        """A group of responses to each prompt, or the greedy one."""
        settings = self.config.rollout
        self.hand_over()
        purpose = f"rollout/{number}" if number else "rollout"
        with self.policies.autocast():
            return self.engine.sample(
                [rendered(prompt, self.tokenizer) for prompt in prompts],
                group=1 if greedy else settings.group,
                max_new_tokens=settings.max_new_tokens,
                temperature=0.0 if greedy else settings.temperature,
                seed=draw_seed(purpose, self.config.seed, step),
                first=first,
            )

    def hand_over(self) -> None:
        """Let the engine have the policy as it is now, if it has not."""
        if self.moved:
            self.engine.refresh()
            self.moved = False

    def judge(self, prompts: Sequence[Prompt], rollouts: Rollouts, group: int) -> Tensor:
        """The reward of each response, [B]; one that was skipped gets its group's mean."""
        asked = [prompt for prompt in prompts for _ in range(group)]
        rewards, counts = judge(self.task, asked, rollouts.texts)
        self.judging.update(counts)
        filled = fill_skipped(rewards, group)
        return torch.tensor(filled, dtype=torch.float32, device=self.processes.device)

    def group_ids(self, prompts: Sequence[Prompt]) -> Tensor:
        """Which prompt each response answers."""
        ids = torch.arange(len(prompts), device=self.processes.device)
        return ids.repeat_interleave(self.config.rollout.group)

    def loss_inputs(
        self, step: int, prompts: list[Prompt], rollouts: Rollouts, rewards_B: Tensor
    ) -> LossInputs:
        """What the objective reads; every process computes the log p of its own part.

        On-policy, an exact sampler's log p are the old policy's.
        """
        group_B = self.group_ids(prompts)
        mine = rollouts.select(self.processes.rows(group_B))
        old_BT = rollouts.logp_BT
        if not self.engine.exact:
            with torch.no_grad():
                old_BT = self.processes.gathered(self.logprobs(mine).logp_BT)
        inputs = LossInputs(
            logp_BT=old_BT,
            old_logp_BT=old_BT,
            rollout_logp_BT=rollouts.logp_BT,
            mask_BT=rollouts.mask_BT,
            rewards_B=rewards_B,
            group_B=group_B,
        )
        if self.compared:
            reference_BT = self.processes.gathered(self.policies.reference_logprobs(mine))
            inputs = replace(inputs, ref_logp_BT=reference_BT)
        if "greedy_rewards_B" in self.objective.needs:
            asked = self.processes.share(prompts)
            greedy = self.judge(asked, self.sample(asked, step, greedy=True), 1)
            greedy = self.processes.gathered(greedy).repeat_interleave(self.config.rollout.group)
            inputs = replace(inputs, greedy_rewards_B=greedy)
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

    def logprobs(self, rollouts: Rollouts) -> TokenLogprobs:
        """log p of the responses under the policy."""
        return self.policies.logprobs(rollouts)

    def held_out(self) -> dict[str, float]:
        """Accuracy and reach on held-out prompts, the same at every evaluation of a run."""
        with self.policies.whole():
            self.hand_over()
            return self.evaluation.measure(self.engine, self.task, self.tokenizer, self.processes)

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
        self.policies.save(directory)
