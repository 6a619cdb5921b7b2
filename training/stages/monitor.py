"""In which of RLVR's two stages a run is, from its metrics, and what a schedule may make of it.

Exploitation: entropy falls and favourites are praised. Transition: favourites are blamed, or
entropy has stopped falling while reward holds. Exploration: entropy rises. The stages are those
of arXiv 2510.04028; the paper detects none, this detector is ours. Step by step it is cheap and
late by about `patience` steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from torch import Tensor

Stage = Literal["exploitation", "transition", "exploration"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSettings:
    """How the detector listens, and what it may change.

    smoothing       weight of the newest step in the running averages, in (0, 1].
    patience        steps in a row that a sign must hold.
    graded          whether rewards take more than two values. Only then does the favourite's
                    advantage mark the boundary; with 0/1 rewards it is ignored.
    positive_weight what positive advantages are multiplied by when the turn is over; 1 never
                    changes anything. 0.1 is W-REINFORCE's weight (arXiv 2506.01347).
    ramp            steps from 1 to `positive_weight`, counted from the end of exploitation.
    """

    smoothing: float = 0.1
    patience: int = 5
    graded: bool = False
    positive_weight: float = 1.0
    ramp: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.smoothing <= 1:
            raise ValueError(f"smoothing={self.smoothing}: must be above 0 and at most 1")
        if self.patience < 1 or self.ramp < 1:
            raise ValueError(f"patience={self.patience}, ramp={self.ramp}: must be at least 1")
        if not 0 <= self.positive_weight <= 1:
            raise ValueError(f"positive_weight={self.positive_weight}: must be from 0 to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageState:
    """Everything the detector remembers: running averages, and for how long signs have held."""

    stage: Stage = "exploitation"
    averages: Mapping[str, float]
    slopes: Mapping[str, float]
    rising: int = 0
    falling: int = 0
    blamed: int = 0
    since_turn: int = 0


_AVERAGED = ("token_entropy", "reward", "modal_advantage", "rare_correct_p")


class StageMonitor:
    """Follows a run: `update` with each step's metrics, read `stage`, `metrics`, and the weight.

    Reads `token_entropy` and `reward` of every step, `modal_advantage` and `rare_correct_p` of
    those that have them: the names that `batch_diagnostics` and the trainer give.
    """

    def __init__(self, settings: StageSettings | None = None) -> None:
        self.settings = settings or StageSettings()
        self.state = StageState(averages={}, slopes={})

    @property
    def stage(self) -> Stage:
        return self.state.stage

    @property
    def positive_weight(self) -> float:
        """What to multiply positive advantages by now: 1 while exploiting, then ramping down."""
        share = min(1.0, self.state.since_turn / self.settings.ramp)
        return 1 - share * (1 - self.settings.positive_weight)

    def update(self, metrics: Mapping[str, float]) -> Stage:
        """Take in one step; returns the stage after it."""
        self.state = advance(self.state, metrics, self.settings)
        return self.state.stage

    def metrics(self) -> dict[str, float | str]:
        """What to log beside the step's own numbers."""
        slopes = self.state.slopes
        return {
            "stage": self.state.stage,
            "positive_weight": self.positive_weight,
            **{
                f"{name}_slope": slopes[name]
                for name in ("token_entropy", "rare_correct_p")
                if name in slopes
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self.state)

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.state = StageState(**values)


def advance(state: StageState, metrics: Mapping[str, float], settings: StageSettings) -> StageState:
    """The state after one more step; a pure function.

    exploitation → transition   favourites blamed (graded rewards), or entropy not falling while
                                reward is not falling, for `patience` steps.
    transition → exploration    entropy not falling for another `patience` steps (and favourites
                                blamed, with graded rewards).
    either → exploitation       entropy falling and favourites praised, for `patience` steps.
    """
    for name in ("token_entropy", "reward"):
        if name not in metrics:
            raise ValueError(f"metrics lack {name!r}; they have {', '.join(sorted(metrics))}")
    averages, slopes = dict(state.averages), dict(state.slopes)
    for name in _AVERAGED:
        if name in metrics:
            before = averages.get(name, metrics[name])
            averages[name] = before + settings.smoothing * (metrics[name] - before)
            slopes[name] = averages[name] - before
    if not state.averages:
        return replace(state, averages=averages, slopes=slopes)  # one step has no slope

    falls = slopes["token_entropy"] < 0
    blames = settings.graded and averages.get("modal_advantage", 0.0) < 0
    rises = not falls and (slopes["reward"] >= 0 or state.stage != "exploitation")
    state = replace(
        state,
        averages=averages,
        slopes=slopes,
        rising=state.rising + 1 if rises else 0,
        falling=state.falling + 1 if falls and not blames else 0,
        blamed=state.blamed + 1 if blames else 0,
    )
    stage = _next_stage(state, settings)
    return replace(
        state, stage=stage, since_turn=0 if stage == "exploitation" else state.since_turn + 1
    )


def _next_stage(state: StageState, settings: StageSettings) -> Stage:
    patience = settings.patience
    if state.stage == "exploitation":
        turned = max(state.rising, state.blamed) >= patience
        return "transition" if turned else "exploitation"
    if state.falling >= patience:
        return "exploitation"
    confirmed = state.blamed >= patience or not settings.graded
    if state.stage == "transition" and state.rising >= 2 * patience and confirmed:
        return "exploration"
    return state.stage


def weigh_positives(advantages: Tensor, weight: float) -> Tensor:
    """Positive advantages times the weight, negative ones as they are."""
    return advantages.where(advantages <= 0, advantages * weight)
