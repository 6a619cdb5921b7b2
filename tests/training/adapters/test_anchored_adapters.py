"""What every adapter promises: starts as the base, turns off to it, never touches it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rlvr_decode.matrices import LINEAR_LAYERS
from rlvr_decode.training.adapters import ADAPTERS
from rlvr_decode.training.adapters.attach import attach
from rlvr_decode.training.adapters.config import AdapterConfig, Anchors
from rlvr_decode.training.adapters.layer import AnchoredLinear

KINDS = sorted(ADAPTERS)
Logits = Callable[[nn.Module], Tensor]


def small(kind: str) -> AdapterConfig:
    return ADAPTERS[kind](rank=4, alpha=8.0)


class Residual(nn.Module):
    """The papers' form: y = (W − s·B0A0) x + s·B A x with A, B trained from A0, B0."""

    def __init__(self, layer: AnchoredLinear) -> None:
        super().__init__()
        assert layer.anchor_B is not None
        self.scaling = layer.scaling
        start = layer.anchor_B @ layer.anchor_A
        weight = layer.base.weight
        self.residual = (weight.to(start.dtype) - self.scaling * start).to(weight.dtype)
        self.A = nn.Parameter(layer.anchor_A.clone())
        self.B = nn.Parameter(layer.anchor_B.clone())

    def forward(self, x: Tensor) -> Tensor:
        update = x.to(self.A.dtype) @ self.A.T @ self.B.T
        return (x @ self.residual.T + self.scaling * update).to(x.dtype)


def in_residual_form(model: nn.Module, layers: dict[str, AnchoredLinear]) -> list[nn.Parameter]:
    parameters = []
    for name, layer in layers.items():
        residual = Residual(layer)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, residual)
        parameters += [residual.A, residual.B]
    return parameters


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_starts_as_the_base_to_the_last_bit(
    make_model, logits: Logits, kind: str, dtype: torch.dtype, architecture: str
) -> None:
    model = make_model(architecture, dtype)
    before = logits(model)
    adapter = attach(model, small(kind), seed=0)
    assert len(adapter.layers) == 2 * len(LINEAR_LAYERS)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_disabled_is_the_base_before_and_after_training(
    make_model, logits: Logits, train, kind: str
) -> None:
    model = make_model()
    base = logits(model)
    adapter = attach(model, small(kind), seed=0)
    with adapter.disabled():
        assert torch.equal(logits(model), base)
    train(model, adapter.trainable_parameters())
    trained = logits(model)
    assert (trained - base).abs().max() > 0.05
    with adapter.disabled():
        with adapter.disabled():
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), trained)
    adapter.check_base()
    assert torch.equal(logits(adapter.detach()), base)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_shifts_are_trained(make_model, train, kind: str) -> None:
    model = make_model()
    adapter = attach(model, small(kind), seed=0)
    anchors = {name: layer.anchor_A.clone() for name, layer in adapter.layers.items()}
    with adapter.disabled():
        pass
    train(model, adapter.trainable_parameters(), steps=2)
    shifts = {id(parameter) for parameter in adapter.trainable_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (id(parameter) in shifts), name
        assert (parameter.grad is not None) == (id(parameter) in shifts), name
    for name, layer in adapter.layers.items():
        assert torch.equal(layer.anchor_A, anchors[name])
        assert layer.shift_A.abs().max() > 0
        assert layer.shift_B.abs().max() > 0


@pytest.mark.parametrize("kind", ["pissa", "milora", "geora"])
def test_same_path_as_the_residual_form_in_float64(
    make_model, logits: Logits, train, kind: str
) -> None:
    """AdamW without decay takes both parametrisations along the same weights."""
    anchored_model = make_model(dtype=torch.float64)
    adapter = attach(anchored_model, small(kind), seed=0)
    residual_model = make_model(dtype=torch.float64)
    parameters = in_residual_form(residual_model, adapter.layers)
    for parameter in residual_model.parameters():
        parameter.requires_grad_(any(parameter is trained for trained in parameters))
    starts = [parameter.detach().clone() for parameter in parameters]
    train(anchored_model, adapter.trainable_parameters(), steps=6)
    train(residual_model, parameters, steps=6)
    for shift, parameter, start in zip(
        adapter.trainable_parameters(), parameters, starts, strict=True
    ):
        assert shift.dtype == torch.float64
        torch.testing.assert_close(shift, parameter - start, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits(anchored_model), logits(residual_model), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["pissa", "geora"])
def test_residual_form_is_safe_in_float32_and_lossy_in_bfloat16(
    make_model, logits: Logits, kind: str
) -> None:
    """The hazard the anchored form avoids, kept in sight."""
    errors = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model(dtype=dtype)
        base = logits(model).float()
        layers = attach(make_model(dtype=dtype), small(kind), seed=0).layers
        in_residual_form(model, layers)
        errors[dtype] = ((logits(model).float() - base).norm() / base.norm()).item()
    assert errors[torch.float32] < 1e-5
    assert errors[torch.bfloat16] > 1e-3


def test_gradients_match_the_definition() -> None:
    """Autograd of W x + s(BA − B0A0) x at factors away from their start."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(5, 7, generator=generator).double() for _ in range(2))
    A0, A = (torch.randn(2, 7, generator=generator).double() for _ in range(2))
    B0, B = (torch.randn(5, 2, generator=generator).double() for _ in range(2))
    linear = nn.Linear(7, 5, bias=True).double()
    linear.weight.data = weight
    layer = AnchoredLinear(linear, Anchors(A0, B0), scaling=1.5)
    with torch.no_grad():
        layer.shift_A.copy_(A - A0)
        layer.shift_B.copy_(B - B0)
    A.requires_grad_()
    B.requires_grad_()
    x_definition, x_layer = x.clone().requires_grad_(), x.clone().requires_grad_()
    definition = linear(x_definition) + 1.5 * x_definition @ (B @ A - B0 @ A0).T
    torch.testing.assert_close(layer(x_layer), definition, rtol=1e-12, atol=1e-12)
    definition.square().sum().backward()
    layer(x_layer).square().sum().backward()
    for ours, theirs in (
        (layer.shift_A.grad, A.grad),
        (layer.shift_B.grad, B.grad),
        (x_layer.grad, x_definition.grad),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_bfloat16_layer_rounds_once() -> None:
    """The update joins in float32: the result is the float32 sum, rounded."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 64, bias=False).bfloat16()
    anchors = Anchors(torch.randn(4, 64, generator=generator), None)
    layer = AnchoredLinear(linear, anchors, scaling=2.0)
    with torch.no_grad():
        layer.shift_B.normal_(std=1e-3, generator=generator)
    x = torch.randn(9, 64, generator=generator).bfloat16()
    update = 2.0 * (x.float() @ anchors.A_RN.T @ layer.shift_B.T)
    assert torch.equal(layer(x), (linear(x).float() + update).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), (linear(x).float() + update).bfloat16())


def test_weight_decay_pulls_towards_the_base(make_model) -> None:
    """Decoupled decay alone takes the update to nothing, and the anchors stay."""
    model = make_model()
    adapter = attach(model, small("geora"), seed=0)
    layer = next(iter(adapter.layers.values()))
    with torch.no_grad():
        layer.shift_A.fill_(1.0)
    optimizer = torch.optim.AdamW([layer.shift_A], lr=0.5, weight_decay=0.1)
    layer.shift_A.grad = torch.zeros_like(layer.shift_A)
    optimizer.step()
    torch.testing.assert_close(layer.shift_A, torch.full_like(layer.shift_A, 0.95))


def test_a_factor_cast_down_is_refused(make_model, logits: Logits) -> None:
    model = make_model()
    attach(model, small("lora"), seed=0)
    with pytest.raises(TypeError, match="before attaching"):
        logits(model.bfloat16())


def test_check_base_names_what_changed(make_model) -> None:
    model = make_model()
    adapter = attach(model, small("geora"), seed=0)
    before = adapter.base_checksum
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.base.weight[0, 0] += 1e-3
        model.model.norm.weight[3] += 1e-3
    with pytest.raises(RuntimeError, match=r"model\.layers\.1\.mlp\.up_proj\.weight, model\.norm"):
        adapter.check_base()
    assert adapter.base_checksum == before


def test_base_state_is_the_unadapted_state_dict(make_model) -> None:
    expected = make_model().state_dict()
    model = make_model()
    state = attach(model, small("geora"), seed=0).base_state()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_detach_gives_back_modules_and_gradients(make_model) -> None:
    model = make_model()
    modules = [type(module) for module in model.modules()]
    adapter = attach(model, small("lora"), seed=0)
    assert adapter.detach() is model
    assert [type(module) for module in model.modules()] == modules
    assert all(parameter.requires_grad for parameter in model.parameters())
    attach(model, small("lora"), seed=0)


def test_a_layer_starts_alike_whatever_else_is_adapted(make_model) -> None:
    config = ADAPTERS["geora"]
    every = attach(make_model(), config(rank=4), seed=5)
    only = attach(make_model(), config(rank=4, targets=("up_proj",)), seed=5)
    other_seed = attach(make_model(), ADAPTERS["lora"](rank=4), seed=6)
    lora = attach(make_model(), ADAPTERS["lora"](rank=4), seed=5)
    for name, layer in only.layers.items():
        assert name.endswith("up_proj")
        assert torch.equal(layer.anchor_A, every.layers[name].anchor_A)
        assert not torch.equal(lora.layers[name].anchor_A, other_seed.layers[name].anchor_A)


def test_targets_that_match_nothing_are_named(make_model) -> None:
    config = ADAPTERS["lora"](targets=("q_proj", "qkv_proj", "w1"))
    with pytest.raises(ValueError, match=r"\['qkv_proj', 'w1'\].*'down_proj', 'gate_proj'"):
        attach(make_model(), config, seed=0)


def test_what_cannot_be_adapted_is_refused_and_the_model_left_alone(make_model) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"target model\.embed_tokens is a Embedding"):
        attach(model, ADAPTERS["lora"](rank=2, targets=("embed_tokens",)), seed=0)
    with pytest.raises(ValueError, match=r"rank=40: model\.layers\.0\.self_attn\.k_proj is 32×48"):
        attach(model, ADAPTERS["lora"](rank=40), seed=0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    attach(model, small("lora"), seed=0)
    with pytest.raises(ValueError, match="already carries an adapter"):
        attach(model, small("lora"), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0: must be at least 1"),
        ({"alpha": 0.0}, "alpha=0.0: must be above 0"),
        ({"alpha": float("nan")}, "alpha=nan: must be above 0"),
        ({"dropout": 0.05}, "dropout=0.05: must be 0"),
        ({"targets": ()}, "name at least one"),
        ({"targets": ("q_proj", "lm_head")}, "'lm_head' cannot be adapted"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_checked(kind: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ADAPTERS[kind](**settings)


def test_the_table_names_its_configs() -> None:
    assert {kind: config.kind for kind, config in ADAPTERS.items()} == {k: k for k in KINDS}
    assert KINDS == ["geora", "lora", "milora", "pissa", "rlmo", "rlpo"]


def test_gradient_checkpointing_gives_the_same_gradients(make_model, tokens: Tensor) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        adapter = attach(model, small("geora"), seed=0)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with adapter.disabled():
            model(input_ids=tokens)
        model(input_ids=tokens, labels=tokens).loss.backward()
        gradients.append([parameter.grad for parameter in adapter.trainable_parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        assert torch.equal(plain, checkpointed)
