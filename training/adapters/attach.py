"""Put an adapter on a model, and take it off again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlvr_decode.training.adapters.checksum import combined_checksum, tensor_checksums
from rlvr_decode.training.adapters.config import AdapterConfig, Anchors
from rlvr_decode.training.adapters.layer import AnchoredLinear

FACTORS = ("anchor_A", "anchor_B", "shift_A", "shift_B")


@dataclass(kw_only=True, slots=True)
class AttachedAdapter:
    """A model whose linear layers carry an adapter: `model` computes the adapted policy.

    layers          the adapted layers by the name of the linear layer each one wraps.
    base_checksums  of every tensor of the base model, by name, from before anything was trained.
    frozen          the base's own parameters that training moved before, and may after `detach`.
    """

    model: nn.Module
    config: AdapterConfig
    seed: int
    layers: dict[str, AnchoredLinear]
    base_checksums: dict[str, str]
    frozen: list[nn.Parameter]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """All that training may move: each layer's shifts of A and B from their start.

        An optimiser's ordinary weight decay on them is the right one, towards the base model.
        """
        return [shift for layer in self.layers.values() for shift in (layer.shift_A, layer.shift_B)]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model is the base policy to the last bit; nothing is moved or merged."""
        before = [layer.enabled for layer in self.layers.values()]
        for layer in self.layers.values():
            layer.enabled = False
        try:
            yield
        finally:
            for layer, enabled in zip(self.layers.values(), before, strict=True):
                layer.enabled = enabled

    def base_state(self) -> dict[str, Tensor]:
        """The base model's state dict under its own names, as if nothing were attached."""
        ours = {f"{name}.{factor}" for name in self.layers for factor in FACTORS}
        return {
            self._base_name(name): tensor
            for name, tensor in self.model.state_dict().items()
            if name not in ours
        }

    def _base_name(self, name: str) -> str:
        """`….q_proj.base.weight` as the base model calls it: `….q_proj.weight`."""
        path, _, leaf = name.rpartition(".")
        layer = path.removesuffix(".base")
        return f"{layer}.{leaf}" if layer in self.layers else name

    @property
    def base_checksum(self) -> str:
        """SHA-256 over names, shapes, dtypes and bytes of the base model at attachment."""
        return combined_checksum(self.base_checksums)

    def check_base(self) -> None:
        """Raise RuntimeError naming every base tensor that has changed since attachment."""
        now, before = tensor_checksums(self.base_state()), self.base_checksums
        if changed := sorted(k for k in now | before if now.get(k) != before.get(k)):
            raise RuntimeError(
                f"the frozen base model has changed in {', '.join(changed)}: the adapter no longer "
                "belongs to it; reload the base and resume from the last checkpoint"
            )

    def detach(self) -> nn.Module:
        """The base model as it was: its own modules and gradients, without the adapter."""
        for name, layer in self.layers.items():
            _replace(self.model, name, layer.base)
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        self.layers = {}
        return self.model


def attach(model: nn.Module, config: AdapterConfig, *, seed: int) -> AttachedAdapter:
    """Give the model's target layers an adapter, in place; its outputs keep their bits.

    Everything but the adapter is frozen. Each layer's start is drawn from (seed, layer name), on
    the CPU, so it does not depend on which other layers are adapted or in what order. Store what
    is drawn (`save_state`) rather than draw it again: a sketched SVD repeats its bits only on
    the same machine.

    Raises ValueError naming the targets that match no linear layer, layers of another kind, and
    ranks larger than a layer.
    """

    def drawn(name: str, weight_MN: Tensor) -> Anchors:
        generator = torch.Generator().manual_seed(_layer_seed(seed, name))
        return config.anchors(weight_MN, generator=generator)

    return attach_with(model, config, seed=seed, anchors_of=drawn)


@torch.no_grad()
def attach_with(
    model: nn.Module,
    config: AdapterConfig,
    *,
    seed: int,
    anchors_of: Callable[[str, Tensor], Anchors],
) -> AttachedAdapter:
    """`attach` with the anchors given: `anchors_of(layer name, weight)`, the weight in float32."""
    linears = _target_layers(model, config)
    checksums = tensor_checksums(model.state_dict())
    layers = {}
    for name, linear in linears.items():
        weight_MN = linear.weight
        if weight_MN.dtype != torch.float64:
            weight_MN = weight_MN.float()
        anchors = anchors_of(name, weight_MN)
        layers[name] = AnchoredLinear(linear, anchors, scaling=config.scaling)
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    for name, layer in layers.items():
        layer.train(linears[name].training)
        _replace(model, name, layer)
    return AttachedAdapter(
        model=model,
        config=config,
        seed=seed,
        layers=layers,
        base_checksums=checksums,
        frozen=frozen,
    )


def _target_layers(model: nn.Module, config: AdapterConfig) -> dict[str, nn.Linear]:
    modules = dict(model.named_modules())
    if any(isinstance(module, AnchoredLinear) for module in modules.values()):
        raise ValueError("the model already carries an adapter: detach it first")
    matched = {
        name: module
        for name, module in modules.items()
        if name.rpartition(".")[2] in config.targets
    }
    if missing := set(config.targets) - {name.rpartition(".")[2] for name in matched}:
        linear = {n.rpartition(".")[2] for n, m in modules.items() if isinstance(m, nn.Linear)}
        raise ValueError(
            f"targets {sorted(missing)} match no module of {type(model).__name__}; its linear "
            f"layers are {sorted(linear)}"
        )
    linears = {}
    for name, module in matched.items():
        if not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
            raise ValueError(
                f"target {name} is a {type(module).__name__}: only torch.nn.Linear layers with "
                "floating-point weights can be adapted; load the model unquantised, unfused"
            )
        if config.rank > min(module.weight.shape):
            rows, columns = module.weight.shape
            raise ValueError(
                f"rank={config.rank}: {name} is {rows}×{columns}; lower the rank or leave the "
                "layer out of targets"
            )
        linears[name] = module
    return linears


def _layer_seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
