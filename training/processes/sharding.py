"""FSDP: a model whose weights, gradients and optimiser states are spread over the processes.

PyTorch's `fully_shard`: each layer is put together for its own forward and backward pass. Sampling
runs many passes, in numbers that differ between processes, so for it the layers are `whole`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rlvr_decode.training.processes.distributed import Processes

T = TypeVar("T")


class Sharded(nn.Module):
    """A sharded model. What trains it runs inside its forward, which is what FSDP can follow."""

    def __init__(self, model: nn.Module, processes: Processes) -> None:
        super().__init__()
        self.model = model
        mesh = init_device_mesh(processes.device.type, (processes.size,))
        for module in (*layers(model), self):
            fully_shard(module, mesh=mesh)
        self._parts = [module for module in self.modules() if isinstance(module, FSDPModule)]
        for part in self._parts:
            # The losses of the processes add up, so their gradients do. (Gloo only knows sums.)
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, all weights are here: processes may run different numbers of forward passes."""
        self(lambda: None)
        for part in self._parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in self._parts:
                part.reshard()
                part.set_reshard_after_forward(True, recurse=False)


def layers(model: nn.Module) -> Iterable[nn.Module]:
    """The decoder's layers: the longest list of modules there is."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of layers to shard; set shard=false")
    return max(lists, key=len)


def full(tensor: Tensor) -> Tensor:
    """A tensor whole: what a sharded one is put together, by all processes at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Tensors whole, one after the other; where they are not kept, nothing is.

    A tensor under two names, such as a tied head, stays one.
    """
    kept: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    for name, tensor in tensors.items():
        first = names.setdefault(id(tensor), name)
        if first == name:
            whole = full(tensor.detach())
        if keep:
            kept[name] = whole if first == name else kept[first]
    return kept


def like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor as another one is kept: on its device, and sharded if that is."""
    value = value.to(other.device)
    if isinstance(other, DTensor):
        return distribute_tensor(value, other.device_mesh, other.placements)
    return value
