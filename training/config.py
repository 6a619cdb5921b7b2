"""A training run's settings: one TOML recipe and `key=value` overrides become frozen dataclasses.

Standard library only. Every key is checked by name and type; nothing is guessed or ignored.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rlvr_decode.params import Extrapolation
from rlvr_decode.training.recipe_file import read_values

T = TypeVar("T")

RECIPES = Path(__file__).parent / "recipes"
ADAPTER_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is asked and what counts as right."""

    name: str
    """A key of `data.TASKS`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of that task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A Qwen3 made from nothing; the defaults are the `tiny` pair's."""

    tokenizer: str = "characters"
    """Or byte_pairs, learnt from demonstrations: as many tokens as `vocabulary` allows."""
    vocabulary: int = 104
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head: int = 32
    intermediate: int = 384
    positions: int = 256
    rope_theta: float = 1e4


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrain:
    """Make the base first: next-token training on the task's own demonstrations."""

    architecture: Architecture = field(default_factory=Architecture)
    steps: int = 330
    batch: int = 96
    """Fresh demonstrations per step."""
    lr: float = 3e-3
    """Of Muon (hidden matrices) and AdamW (the rest) alike."""
    warmup: int = 50
    floor: float = 0.03
    """Share of `lr` left at the end; the decay is linear over the second half."""
    weight_decay: float = 0.01
    """Muon's; AdamW has none."""
    checkpoint_every: int = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """How responses are sampled for one step."""

    prompts: int = 48
    """Prompts per step."""
    group: int = 12
    """Responses per prompt."""
    max_new_tokens: int = 256
    temperature: float = 1.0
    max_rounds: int = 10
    """How often an objective with dynamic sampling may draw fresh prompts for one step."""
    engine: str = "transformers"
    """A key of `engines.ENGINES`; "vllm" is an engine of its own in the same process."""
    time_out: float = 3600.0
    """Seconds after which an engine of its own that has not answered is given up."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """Engine arguments of vLLM, such as gpu_memory_utilization, over the ones chosen here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """The loss."""

    name: str = "grpo"
    """A key of `objectives.OBJECTIVES`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of that objective."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """Train a low-rank update of a frozen base instead of all its weights."""

    kind: str
    """A key of `adapters.ADAPTERS`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of that adapter."""
    dtype: str = "float32"
    """Of the LoRA in the pair; bfloat16 is half the size and rounds the update by 0.2 %."""

    def __post_init__(self) -> None:
        if self.dtype not in ADAPTER_DTYPES:
            raise ValueError(
                f"adapter.dtype={self.dtype!r}: must be one of {', '.join(ADAPTER_DTYPES)}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """AdamW with warm-up to a constant rate."""

    steps: int = 100
    """Batches of rollouts."""
    lr: float = 1e-6
    warmup: int = 5
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    micro_batch: int = 64
    """Responses per forward and backward pass; gradients are summed, so only memory changes. A
    multiple of the group reads each prompt once for its responses."""
    mini_batch: int | None = None
    """Prompts per optimiser step; absent, a batch of rollouts makes one step."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass rather than keep them."""
    bf16: bool = False
    """Forward passes in bfloat16 by autocast; weights, optimiser and log-probs stay float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Accuracy on held-out prompts, sampled as in training."""

    every: int = 0
    """Steps between evaluations; 0 means never."""
    prompts: int = 256
    samples: int = 2
    stop_at: float | None = None
    """End the run at the first evaluation that reaches this accuracy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What survives a crash."""

    every: int = 10
    """Steps between checkpoints; the last step always has one."""
    keep: int = 2
    """How many of the newest are kept; 0 keeps all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """What a run tells beside `metrics.jsonl`; a run that resumes may tell other things."""

    to: list[str] = field(default_factory=list)
    """Keys of `trackers.TRACKERS`: tensorboard, trackio, wandb."""
    samples: int = 4
    """Completions of each step kept in `samples.jsonl`."""
    show_every: int = 0
    """Steps between tables of those on the screen; 0 means never."""
    curves: bool = True
    """Draw `curves.png` at the end; needs matplotlib."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """One run, from prompts to a pair."""

    name: str
    """Of the run's directory and of the pair."""
    task: Task
    base: str | None = None
    """Checkpoint directory, hub id, or pair:NAME (its base); absent when `pretrain` makes it."""
    pretrain: Pretrain | None = None
    out: str = "runs"
    """The run lives in `out/name`."""
    seed: int = 0
    threads: int | None = None
    """CPU threads per operation; absent leaves it to PyTorch. Another number, other last bits."""
    rollout: Rollout = field(default_factory=Rollout)
    objective: Objective = field(default_factory=Objective)
    optim: Optim = field(default_factory=Optim)
    adapter: Adapter | None = None
    """Absent, all weights train."""
    rank: dict[str, Any] | None = None
    """MRPO's reward: settings of `ranks.RankReward`. Rewards of 1 and more count as correct."""
    verl: dict[str, Any] | None = None
    """VERL's bonus, for an objective that reads it: settings of `trends.TrendSettings`."""
    stages: dict[str, Any] | None = None
    """Follow the two stages of RLVR: settings of `stages.StageSettings`."""
    reset: dict[str, Any] | None = None
    """ProRL's reset of reference and optimiser: settings of `reset.ResetRule`."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)
    shard: bool = False
    """With several processes: spread weights, gradients and optimiser over them (FSDP)."""
    process_time_out: float = 7200.0
    """Seconds after which a process that the others wait for is given up."""
    kl_to_base: bool = True
    """Log the KL from base each step; one more forward, and without an adapter a second model."""
    defaults: Extrapolation = field(default_factory=Extrapolation)
    """How the pair is decoded when a request does not say."""

    def __post_init__(self) -> None:
        if (self.base is None) == (self.pretrain is None):
            raise ValueError("give either base (a checkpoint) or [pretrain] (make one), not both")
        if self.rollout.temperature <= 0:
            raise ValueError(
                f"rollout.temperature={self.rollout.temperature}: must be above 0; "
                "greedy responses to a prompt are all alike and teach nothing"
            )
        for name, seconds in (
            ("rollout.time_out", self.rollout.time_out),
            ("process_time_out", self.process_time_out),
        ):
            if not 0 < seconds <= 1e8:
                raise ValueError(f"{name}={seconds:g}: must be above 0, and at most 1e8 seconds")
        for name, value in (
            ("rollout.prompts", self.rollout.prompts),
            ("rollout.group", self.rollout.group),
            ("rollout.max_new_tokens", self.rollout.max_new_tokens),
            ("rollout.max_rounds", self.rollout.max_rounds),
            ("optim.micro_batch", self.optim.micro_batch),
            ("optim.mini_batch", 1 if self.optim.mini_batch is None else self.optim.mini_batch),
            ("checkpoint.every", self.checkpoint.every),
            ("threads", 1 if self.threads is None else self.threads),
        ):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> Train:
    """Read a recipe (a TOML file, or the name of a bundled one) and apply `key=value` overrides.

    >>> load("tiny", ["optim.lr=1e-4"]).optim.lr
    0.0001
    """
    values = read_values(recipe, bundled=RECIPES)
    for item in overrides:
        override(values, item)
    return build(Train, values)


def override(values: dict[str, Any], item: str) -> None:
    """Set one `section.key=value` in place; the value is TOML, or else a plain string."""
    key, equals, text = item.partition("=")
    if not equals or not all(key.split(".")):
        raise ValueError(f"override {item!r}: write it as section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"override {item!r}: {section} is a value, not a section")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        parsed = {}
    # Text of several lines could be several values.
    values[last] = parsed["value"] if parsed.keys() == {"value"} else text


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Make a frozen config dataclass from plain values; an unknown or mistyped key is an error."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    title = where or "recipe"
    if unknown := sorted(values.keys() - fields.keys()):
        raise ValueError(f"{title}: unknown {', '.join(unknown)}; known: {', '.join(fields)}")
    required = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{title}: {', '.join(missing)} must be given")
    hints = typing.get_type_hints(cls)
    return cls(
        **{
            name: _value(hints[name], value, f"{where}.{name}".lstrip("."))
            for name, value in values.items()
        }
    )


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as a field of type `hint`: X, X | None, list[X], tuple[X, …], dict, a dataclass."""
    if isinstance(hint, types.UnionType):
        hint = next(choice for choice in typing.get_args(hint) if choice is not types.NoneType)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}={value!r}: is a section, [{where}]")
        return build(hint, value, where)
    kind = typing.get_origin(hint) or hint
    # An integer is a fine float, if there is one of its size; true is neither.
    if kind is float and type(value) in (int, float):
        return _float(value, where)
    if kind is tuple and isinstance(value, list):
        return tuple(_value(typing.get_args(hint)[0], each, where) for each in value)
    if type(value) is not kind:
        raise ValueError(f"{where}={value!r}: must be {kind.__name__}, not {type(value).__name__}")
    if kind is list:
        (item,) = typing.get_args(hint)
        return [_value(item, each, f"{where}[{i}]") for i, each in enumerate(value)]
    return value


def _float(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{where}={reprlib.repr(value)}: is larger than every float") from None
    if math.isnan(number):
        raise ValueError(f"{where}=nan: must be a number")
    return number
