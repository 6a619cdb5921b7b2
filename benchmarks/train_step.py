"""A step of GRPO, sampling included: our seconds and memory beside those of TRL's GRPOTrainer.

    pip install --no-deps --target trl-1.16 trl==1.16
    PYTHONPATH=trl-1.16 python benchmarks/train_step.py [--rounds 2 --steps 1 --threads 1]

The same random Qwen3-shaped model, prompts, group size, response length, micro-batch, optimiser
and objective in float32; arms take turns, each in a process of its own, whose first step is not
timed and whose peak resident memory is read at its end. Beside the wall clock stands the processor
time, which other work on the machine changes little. Both trainers run with and without gradient
checkpointing, which TRL has on by default and we off. First one batch with drifted log-probs goes
through both losses: unless they and their gradients agree, nothing is measured. Each process adds a
line to benchmarks/results/train_step.jsonl, and rounds that are there are not repeated.

B responses, P prompt tokens, T response tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import resource
import statistics
import string
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers.utils import logging

from rlvr_decode.testing import make_checkpoints

RESULTS = Path(__file__).parent / "results"
SHAPE: dict[str, Any] = {
    "base_vocab": 32_000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
ARMS = ("ours", "trl", "ours+checkpointing", "trl+checkpointing")
# The second holds each trainer's defaults against the other's.
PAIRS = (
    ("ours", "trl"),
    ("ours", "trl+checkpointing"),
    ("ours+checkpointing", "trl+checkpointing"),
)
LOSS_LIMIT, GRADIENT_LIMIT = 1e-5, 1e-4


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
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

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


def arm(name: str, work: Work) -> dict[str, Any]:
    """What one process measures."""
    torch.set_num_threads(work.threads)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if name == "check":
        return check(work)
    trainer, _, checkpointing = name.partition("+")
    run = {"ours": run_ours, "trl": run_trl}[trainer]
    clocks = run(work, checkpointing=bool(checkpointing))
    pairs = list(itertools.pairwise(clocks))
    return {
        "seconds": [round(end.wall - start.wall, 2) for start, end in pairs],
        "processor_seconds": [round(end.processor - start.processor, 2) for start, end in pairs],
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def in_its_own_process(name: str, work: Work) -> dict[str, Any]:
    """An arm's measurements, read from the last line that it prints."""
    command = [sys.executable, __file__, "--arm", name]
    for key in Work.__slots__:
        command += [f"--{key.replace('_', '-')}", str(getattr(work, key))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"arm {name} failed:\n{done.stderr[-3000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def compare(work: Work, rounds: int, arms: list[str], results: Path) -> None:
    """Check, take turns, write down and print."""
    file = results / "train_step.jsonl"
    for turn in range(rounds):
        for name in ("check", *(arms if turn % 2 == 0 else reversed(arms))):
            if len(measured(file, work, name)) > (0 if name == "check" else turn):
                continue
            line = {"arm": name, **in_its_own_process(name, work), **about(work)}
            print(json.dumps(line), flush=True)
            if name == "check" and (
                line["loss_difference"] > LOSS_LIMIT or line["gradient_difference"] > GRADIENT_LIMIT
            ):
                raise SystemExit("the losses disagree: no timing is reported")
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
    table = report(work, file)
    (results / "train_step.md").write_text(table, encoding="utf-8")
    print(table)


def about(work: Work) -> dict[str, Any]:
    """What a line was measured with."""
    return {
        "model": SHAPE,
        "work": settings(work),
        "load": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"CPU {platform.machine()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": version("trl"),
    }


def settings(work: Work) -> dict[str, int]:
    """The work, but for where the model happens to lie."""
    return {key: getattr(work, key) for key in Work.__slots__ if key != "base"}


def measured(file: Path, work: Work, name: str) -> list[dict[str, Any]]:
    """The lines of an arm that did this work."""
    if not file.exists():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["arm"] == name and line["work"] == settings(work)]


def report(work: Work, file: Path) -> str:
    """Medians over all timed steps, and ours over TRL's, as Markdown."""
    check = measured(file, work, "check")[0]
    found: dict[str, tuple[float, float, int]] = {}
    for name in ARMS:
        if lines := measured(file, work, name):
            wall, busy = (
                statistics.median([s for line in lines for s in line[key]])
                for key in ("seconds", "processor_seconds")
            )
            found[name] = wall, busy, max(line["peak_mb"] for line in lines)
    rows = [
        f"| {name} | {busy:.1f} | {wall:.1f} | {peak} |"
        for name, (wall, busy, peak) in found.items()
    ]
    ratios = [
        f"- {mine} over {other}: {found[mine][1] / found[other][1]:.2f} of the processor time, "
        f"{found[mine][0] / found[other][0]:.2f} of the wall clock, "
        f"{found[mine][2] / found[other][2]:.2f} of the memory"
        for mine, other in PAIRS
        if mine in found and other in found
    ]
    return (
        "# A step of GRPO, ours and TRL's\n\n"
        f"{work.prompts} × {work.group} responses of {work.response_tokens} tokens to prompts of "
        f"{work.prompt_tokens}, micro-batches of {work.micro_batch}, float32, threads: "
        f"{work.threads}, TRL {check['trl']}, torch {check['torch']}. On one drifted batch the "
        f"losses differ by {check['loss_difference']:.0e} and the gradients by "
        f"{check['gradient_difference']:.0e} of their norm. Medians over steps; the peak is the "
        "process's, libraries included.\n\n"
        "| arm | processor seconds per step | wall-clock seconds | peak memory, MB |\n"
        "| --- | ---: | ---: | ---: |\n" + "\n".join([*rows, "", *ratios, ""])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1, help="timed, in each process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--response-tokens", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--arm", choices=(*ARMS, "check"), help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        base = arguments.base or str(make_checkpoints(Path(directory), **SHAPE)[0])
        values = {key: getattr(arguments, key) for key in Work.__slots__}
        work = Work(**values | {"base": base})
        if arguments.arm:
            print(json.dumps(arm(arguments.arm, work)))
        else:
            arguments.results.mkdir(exist_ok=True)
            compare(work, arguments.rounds, arguments.arms, arguments.results)


if __name__ == "__main__":
    main()
