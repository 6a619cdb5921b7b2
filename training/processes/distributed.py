"""The processes that share a run, as `torchrun` or `accelerate launch` starts them.

Every process holds the policy and takes its share of the prompts; what they sampled is gathered,
so that each knows the whole batch and computes the gradient of its own part of it. Those add up to
the gradient of one process with the whole batch. The first process alone writes files.

A process that dies takes the others with it, at their next exchange; one that stalls, after a
time-out. With one process nothing here does anything. What is left out: several processes to one
engine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

# How long the others may wait while the first process does something for all, such as pretraining.
_PATIENCE = timedelta(hours=6)


class LostProcess(RuntimeError):
    """Another process of the run has died, or no longer answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """Who this process is among those of the run, and what they tell each other.

    Every method with a result over all processes must be called by all of them.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    patient: dist.ProcessGroup | None = None
    """The same processes, who wait longer for each other there."""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def bounds(self, count: int) -> tuple[int, int]:
        """First and last + 1 of this process's share of so many things in a row."""
        return self.rank * count // self.size, (self.rank + 1) * count // self.size

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share."""
        start, end = self.bounds(len(items))
        return items[start:end]

    def rows(self, group_B: Tensor) -> Tensor:
        """The rows of this process's share of the groups, which stand in order."""
        ids = torch.unique_consecutive(group_B)
        start, end = self.bounds(len(ids))
        return torch.isin(group_B, ids[start:end]).nonzero().flatten()

    def everyones(self, x: Tensor) -> list[Tensor]:
        """The tensors of all processes; their sizes may differ, their dimensions not."""
        if self.size == 1:
            return [x]
        shape = torch.tensor(x.shape, device=self.device)
        shapes = [torch.empty_like(shape) for _ in range(self.size)]
        dist.all_gather(shapes, shape)
        sizes = [tuple(each.tolist()) for each in shapes]
        flat = x.new_zeros(max(torch.Size(size).numel() for size in sizes))
        flat[: x.numel()] = x.flatten()
        parts = [torch.empty_like(flat) for _ in range(self.size)]
        dist.all_gather(parts, flat)
        return [
            part[: torch.Size(size).numel()].view(size)
            for part, size in zip(parts, sizes, strict=True)
        ]

    def gathered(self, x: Tensor) -> Tensor:
        """The rows of all processes, in order; other dimensions must agree."""
        return torch.cat(self.everyones(x))

    def merged(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Sums over all processes, and maxima of `…_max`; all must have the same names."""
        if self.size == 1 or not metrics:
            return dict(metrics)
        values = self.gathered(torch.tensor([list(metrics.values())], dtype=torch.float64))
        sums, maxima = values.sum(0).tolist(), values.amax(0).tolist()
        return {
            name: maxima[i] if name.endswith("_max") else sums[i] for i, name in enumerate(metrics)
        }

    def most(self, number: int) -> int:
        """The largest of a number that each process has."""
        return int(max(each.item() for each in self.everyones(torch.tensor([number]))))

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all processes' gradients."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            dist.barrier(self.patient)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """What the first process has done inside, the others find done."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


def is_first() -> bool:
    """Whether this process is the one that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def processes(time_out: float = 3600.0) -> Iterator[Processes]:
    """The processes that the launcher has started together with this one; without one, this one.

    Raises ValueError if the launcher was asked for what only a recipe can switch on. Inside, a
    process that dies, or lets the others wait for `time_out` seconds, is a LostProcess in these.
    """
    for variable, remedy in _NOT_FROM_OUTSIDE.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise ValueError(f"{variable} is set by the launcher: {remedy}")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes(device=device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=time_out))
    patient = dist.new_group(timeout=_PATIENCE)
    try:
        yield Processes(rank=dist.get_rank(), size=size, device=device, patient=patient)
    except RuntimeError as error:
        if not _is_of_exchange(error):
            raise
        raise LostProcess(
            f"process {dist.get_rank()} of {size} has lost another one, which has died or has not "
            f"answered for {time_out:g} s; what that one said tells why. The newest checkpoint is "
            "intact, and the same command goes on from there"
        ) from error
    finally:
        # A vLLM engine has done so already.
        if dist.is_initialized():
            dist.destroy_process_group()


def _is_of_exchange(error: RuntimeError) -> bool:
    """Whether processes could not reach each other. Gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


_NOT_FROM_OUTSIDE = {
    "ACCELERATE_USE_FSDP": "launch without it and set shard=true in the recipe",
    "ACCELERATE_USE_DEEPSPEED": "launch without it; shard=true in the recipe does the same",
}
