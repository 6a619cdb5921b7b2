"""An SOE run's settings: which models, which problems, how many of everything."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlvr_decode.training.config import Task
from rlvr_decode.training.soe.text import STEP

CHOICES = ("orthogonal", "random", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """How a failed chain is reopened. Counts and temperatures are the paper's (arXiv 2601.06160)
    where it gives them; cut points, pooling, look-ahead length and eps are ours."""

    choice: str = "orthogonal"
    """Which probe is stitched: the one with the greatest Ω, a random one, or none (controls)."""
    cuts: int = 4
    """Truncation points per failed chain, at most."""
    step: str = STEP
    """Regular expression of what separates two reasoning steps."""
    lookaheads: int = 8
    lookahead_tokens: int = 32
    teacher_temperature: float = 0.7
    probes: int = 8
    probe_tokens: int = 8
    student_temperature: float = 1.0
    eps: float = 0.05
    """Share of the look-aheads' variance that the manifold may leave out."""
    k: int | None = None
    """Directions of the manifold, instead of `eps`."""
    min_omega: float = 0.0
    """Probes below are not continued."""
    continuations: int = 4
    """Per stitched prefix; with 4 cuts, 16 per problem."""
    max_tokens: int = 1024
    """Of a greedy chain, and of a continuation."""
    max_similarity: float = 0.95
    """Traces of one problem more similar than this are near-duplicates."""

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise ValueError(f"search.choice={self.choice!r}: must be one of {', '.join(CHOICES)}")
        for name in ("cuts", "probes", "probe_tokens", "lookahead_tokens", "continuations"):
            if getattr(self, name) < 1:
                raise ValueError(f"search.{name}={getattr(self, name)}: must be at least 1")
        if self.lookaheads < 2:
            raise ValueError(f"search.lookaheads={self.lookaheads}: must be at least 2")


@dataclass(frozen=True, kw_only=True, slots=True)
class SOE:
    """One run of spectral orthogonal exploration, from problems to verified traces."""

    name: str
    """Of the run's directory."""
    task: Task
    teacher: str
    """Checkpoint directory, hub id, or pair:NAME for a pair's base: it fails and will learn."""
    student: str
    """The weaker model, of another family if possible; its tokenizer may differ."""
    out: str = "runs"
    seed: int = 0
    problems: int = 256
    """Training prompts tried, from number `first` on."""
    first: int = 0
    problems_at_once: int = 32
    """Problems whose model calls are batched together, and that a crash may lose."""
    batch: int = 64
    """Rows per model call."""
    layer: int = -1
    """Which hidden states are pooled; not known from the paper."""
    search: Search = field(default_factory=Search)
