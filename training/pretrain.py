"""Pretraining: a base model from nothing, on a task's own demonstrations, in minutes on a CPU.

Next-token cross-entropy on the response alone. Muon is what makes it minutes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rlvr_decode.training.config import Pretrain, Train
from rlvr_decode.training.policy.model import new_model, save_model
from rlvr_decode.training.policy.optim import muon_and_adamw, set_lr
from rlvr_decode.training.run.checkpoint import Checkpoints, appearing_whole
from rlvr_decode.training.run.interrupt import Stopped, StopRequest
from rlvr_decode.training.run.metrics import MetricsLog
from rlvr_decode.training.tasks.task import Corpus
from rlvr_decode.training.tasks.traces import Trace, encode

_TOKENIZER_TEXTS = 2000


def pretrain(
    config: Train, settings: Pretrain, task: Corpus, directory: Path, stop: StopRequest
) -> Path:
    """Train the base and write it to `directory`/base; resumes, and returns at once when done."""
    base = directory / "base"
    if base.exists():
        return base
    work = directory / "pretrain"
    work.mkdir(parents=True, exist_ok=True)
    model, tokenizer = new_model(
        settings.architecture, config.seed, corpus_texts(task, config.seed)
    )
    optimizers = muon_and_adamw(model, lr=settings.lr, weight_decay=settings.weight_decay)
    checkpoints = Checkpoints(directory=work / "checkpoints", keep=1)
    log = MetricsLog(work / "metrics.jsonl")
    done = (checkpoints.restore(model, optimizers) or {"step": 0})["step"]
    log.rewind(done)

    model.train()
    bar = tqdm(range(done + 1, settings.steps + 1), "pretrain", settings.steps, initial=done)
    for step in bar:
        set_lr(optimizers, settings.lr * schedule(step, settings))
        inputs, labels = demonstrations(task, tokenizer, settings.batch, step, config.seed)
        loss = model(input_ids=inputs, labels=labels).loss
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"pretraining step {step}: loss is {loss.item()}; lower pretrain.lr"
            )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        log.write(step, {"loss": loss.item()})
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if step % settings.checkpoint_every == 0 or stop.requested:
            checkpoints.save(model, optimizers, {"step": step})
        if stop.requested:
            raise Stopped(f"step {step} of pretraining")

    with appearing_whole(base) as scratch:
        save_model(model, tokenizer, scratch)
    return base


def schedule(step: int, settings: Pretrain) -> float:
    """The share of `lr` at a step counted from 1: linear warm-up, then linear decay from half."""
    warm = min(1.0, step / max(settings.warmup, 1))
    left = (settings.steps - step) / max(settings.steps / 2, 1)
    return warm * max(settings.floor, min(1.0, left))


def corpus_texts(task: Corpus, seed: int) -> Iterator[str]:
    """Prompts and responses for a tokenizer to learn from."""
    rng = random.Random(f"tokenizer/{seed}")
    for index in range(_TOKENIZER_TEXTS):
        prompt = task.prompt(index, seed=seed, split="train")
        yield prompt.text + task.demonstration(prompt, rng)


def demonstrations(
    task: Corpus, tokenizer: PreTrainedTokenizerBase, batch: int, step: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Fresh demonstrations of one step, [B, T], right-padded; labels count responses alone."""
    rng = random.Random(f"demonstrations/{seed}/{step}")
    prompts = (
        task.prompt(index, seed=seed, split="train")
        for index in range((step - 1) * batch, step * batch)
    )
    traces = [Trace(prompt.text, task.demonstration(prompt, rng)) for prompt in prompts]
    return encode(traces, tokenizer)
