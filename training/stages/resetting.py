"""ProRL's reset in the loop: when it happens, and how a resumed run finds the reference again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rlvr_decode.training.config import build
from rlvr_decode.training.processes.sharding import full_tensors, like
from rlvr_decode.training.run.checkpoint import appearing_whole
from rlvr_decode.training.stages.reset import ResetRule, hard_reset, reset_reason

_FILE = "weights.safetensors"


class Resets:
    """Makes the policy the reference whenever the rule says so; without settings, never.

    directory  holds each reference there has been, so that a run that resumes from before a
               reset, or from after it, has the one of that time.
    writes     whether this process writes them.
    """

    def __init__(
        self,
        settings: Mapping[str, Any] | None,
        *,
        policy: nn.Module,
        reference: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        directory: Path,
        writes: bool = True,
    ) -> None:
        self.rule = None if settings is None else build(ResetRule, settings, "reset")
        if self.rule is not None and reference is None:
            raise ValueError(
                "reset: there is no reference model to reset; it needs kl_to_base=true and no "
                "[adapter], whose reference is its base for good"
            )
        self.policy, self.reference, self.optimizer = policy, reference, optimizer
        self.directory, self.writes = directory, writes
        self.since = 0
        self.evaluations: list[float] = []

    def after(self, step: int, metrics: Mapping[str, Any]) -> dict[str, str]:
        """Reset if it is time, and say why."""
        if self.rule is None:
            return {}
        assert self.reference is not None
        if "held_out" in metrics:
            self.evaluations.append(metrics["held_out"])
        reason = reset_reason(
            self.rule,
            steps=step - self.since,
            kl=metrics["kl_ref"],
            evaluations=self.evaluations,
        )
        if reason is None:
            return {}
        hard_reset(self.policy, self.reference, [self.optimizer])
        self.since, self.evaluations = step, []
        weights = full_tensors(dict(self.reference.named_parameters()), keep=self.writes)
        if self.writes:
            with appearing_whole(self._place()) as scratch:
                save_file(weights, scratch / _FILE)
        return {"reset": reason}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        if self.rule is None:
            return {}
        return {"resets": {"since": self.since, "evaluations": list(self.evaluations)}}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state, with the reference of that time."""
        if self.rule is None or "resets" not in state:
            return
        assert self.reference is not None
        self.since, self.evaluations = state["resets"]["since"], state["resets"]["evaluations"]
        if self.since:
            weights = load_file(self._place() / _FILE)
            for name, parameter in self.reference.named_parameters():
                parameter.copy_(like(weights[name], parameter))

    def _place(self) -> Path:
        return self.directory / f"step-{self.since:06d}"
