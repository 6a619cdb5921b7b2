"""What `train_step.py` times: a step of ours and of TRL's trainer on the same work.

B responses, P prompt tokens, T response tokens.
"""

from __future__ import annotations

import random
import string
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a step does, the same for every arm."""

    base: str
    prompts: int
    group: int
    prompt_tokens: int
    response_tokens: int
    micro_batch: int
    steps: int
    threads: int

    def questions(self) -> list[str]:
        """Enough random prompts for every step, of `prompt_tokens` bytes each."""
        letters = random.Random(0)
        return [
            "".join(letters.choices(string.ascii_lowercase, k=self.prompt_tokens))
            for _ in range(self.prompts * (self.steps + 1))
        ]


def reward(text: str) -> float:
    """Something that differs among random responses."""
    return len(text) % 7 / 7


class Letters:
    """The questions as a task of ours."""

    def __init__(self, questions: list[str]) -> None:
        self.questions = questions

    def prompt(self, index: int, *, seed: int, split: str) -> Any:
        from rlvr_decode.training.tasks.task import Prompt

        return Prompt(text=self.questions[index % len(self.questions)], answer="")

    def reward(self, prompt: Any, response: str) -> float:
        return reward(response)


def our_trainer(work: Work, *, checkpointing: bool) -> Any:
    """Our trainer, ready for its first step."""
    from rlvr_decode.training.config import Optim, Rollout, Task, Train
    from rlvr_decode.training.objectives import OBJECTIVES
    from rlvr_decode.training.step import Trainer

    config = Train(
        name="train-step",
        task=Task(name="letters"),
        base=work.base,
        out=tempfile.gettempdir(),
        rollout=Rollout(
            prompts=work.prompts, group=work.group, max_new_tokens=work.response_tokens
        ),
        optim=Optim(micro_batch=work.micro_batch, warmup=0, gradient_checkpointing=checkpointing),
        kl_to_base=False,
    )
    return Trainer(config, Letters(work.questions()), OBJECTIVES["grpo"](eps=1e-4), work.base)


def trl_trainer(work: Work, directory: str, *, checkpointing: bool, callbacks: Any = None) -> Any:
    """TRL's trainer with the same settings, its defaults otherwise."""
    from datasets import Dataset  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

    responses = work.prompts * work.group
    settings = GRPOConfig(
        output_dir=directory,
        loss_type="grpo",
        num_generations=work.group,
        max_completion_length=work.response_tokens,
        per_device_train_batch_size=work.micro_batch,
        gradient_accumulation_steps=responses // work.micro_batch,
        max_steps=work.steps + 1,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        gradient_checkpointing=checkpointing,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
    )
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work.base, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [reward(each) for each in completions],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": work.questions()}),
        processing_class=AutoTokenizer.from_pretrained(work.base),
        callbacks=callbacks,
    )


class Clock(NamedTuple):
    """Wall-clock and processor seconds up to now."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> Clock:
        return cls(time.perf_counter(), time.process_time())


def run_ours(work: Work, *, checkpointing: bool) -> list[Clock]:
    """When each of our steps was over."""
    trainer = our_trainer(work, checkpointing=checkpointing)
    clocks = []
    for number in range(1, work.steps + 2):
        length = trainer.step(number)["length"]
        clocks.append(Clock.now())
        assert length > 0.9 * work.response_tokens, f"responses have {length} tokens"
    return clocks


def run_trl(work: Work, *, checkpointing: bool) -> list[Clock]:
    """When each of TRL's steps was over."""
    from transformers import TrainerCallback

    clocks: list[Clock] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clocks.append(Clock.now())

    with tempfile.TemporaryDirectory() as directory:
        trl_trainer(work, directory, checkpointing=checkpointing, callbacks=[Watch()]).train()
    return clocks


def check(work: Work) -> dict[str, float]:
    """The largest differences of log-probs, loss and gradient on one batch, relative to TRL's."""
    trainer = our_trainer(work, checkpointing=False)
    prompts = trainer.prompts(1)
    rollouts = trainer.sample(prompts, 1)
    rewards_B = trainer.judge(prompts, rollouts, work.group)
    inputs = trainer.loss_inputs(1, prompts, rollouts, rewards_B)
    generator = torch.Generator().manual_seed(0)
    drift_BT = 0.3 * torch.randn(inputs.logp_BT.shape, generator=generator)
    batch = trainer.objective.prepare(replace(inputs, old_logp_BT=inputs.old_logp_BT + drift_BT))
    ours = torch.zeros(())
    for micro in batch.split(work.micro_batch):
        logp_BT, _ = trainer.policies.logprobs(rollouts.select(micro.require("row_B")))
        loss = trainer.objective(replace(micro, logp_BT=logp_BT)).loss
        loss.backward()
        ours += loss.detach()

    with tempfile.TemporaryDirectory() as directory:
        other = trl_trainer(work, directory, checkpointing=False)
    # TRL divides each micro-batch's mean by their number; here one micro-batch is the batch.
    other.current_gradient_accumulation_steps = 1
    theirs = other._compute_loss(
        other.model,
        {
            "prompt_ids": rollouts.prompt_BP,
            "prompt_mask": rollouts.prompt_mask_BP.long(),
            "completion_ids": rollouts.response_BT,
            "completion_mask": rollouts.mask_BT.long(),
            "advantages": batch.require("advantages_BT")[:, 0],
            "old_per_token_logps": batch.old_logp_BT,
            "num_items_in_batch": rollouts.mask_BT.sum(),
        },
    )
    theirs.backward()
    pairs = list(zip(trainer.policy.parameters(), other.model.parameters(), strict=True))
    gap = sum((a.grad - b.grad).square().sum() for a, b in pairs)
    size = sum(b.grad.square().sum() for _, b in pairs)
    return {
        "loss": ours.item(),
        "loss_difference": abs(ours.item() - theirs.item()),
        "gradient_difference": (gap / size).sqrt().item(),
    }
