"""What an objective reads and returns, and how a batch is cut into micro-batches.

B responses, T tokens. Rows may come in any order; `group_B` says which prompt each answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


class Totals(NamedTuple):
    """Counts of the whole batch: the denominators that make micro-batch losses add up.

    Over several processes, sum each count over the processes, pass the result to every one of
    them in `LossInputs.totals` and sum (not average) the gradients.
    """

    tokens: float
    responses: float
    prompts: float

    @classmethod
    def of(cls, mask_BT: Tensor, group_B: Tensor) -> Totals:
        """Count one process's batch."""
        prompts = len(torch.unique(group_B))
        return cls(float(mask_BT.sum()), float(len(group_B)), float(prompts))


class LossOutputs(NamedTuple):
    """The loss to minimise, and detached numbers to log.

    Losses of the micro-batches of one prepared batch add up to the loss of the batch, and so do
    their metrics, except those ending in `_max`: `merge_metrics` does both.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInputs:
    """One batch of rollouts as tensors.

    Given by the trainer:

    logp_BT          log p of the sampled tokens under the policy being trained; has the gradient.
    old_logp_BT      the same under the policy at the start of the update, from the trainer's own
                     forward pass, detached.
    mask_BT          bool, true on the response tokens that count. The rest may hold anything.
    rewards_B        finite numbers.
    group_B          int64; responses with the same id answer the same prompt.
    ref_logp_BT      log p under a frozen reference policy, for KL penalties.
    rollout_logp_BT  log p as the rollout engine reported it, for rollout correction.
    entropy_BT       entropy of the policy being trained at each position, for entropy bonuses.
    greedy_rewards_B the reward of the greedy response to the same prompt, for ReMax.
    bonus_B          how much a response explores or exploits beyond the usual, for VERL.
    totals           counts over all processes, if there are several; otherwise prepare counts.

    Filled by `Objective.prepare`, on the whole batch:

    advantages_BT    how much to push each token up.
    weight_BT        token reweighting, a factor on the advantages.
    selected_BT      bool, the tokens that Clip-Cov or KL-Cov treat apart.
    target_B         the listwise target w*; list_logp_B is log P, filled by `Objective.project`.
    zero_variance_B  bool, all rewards of the group are equal.
    group_size_B, group_tokens_B  responses and counted tokens of each response's whole group.
    row_B            int64, the row's place in the batch that was prepared.
    whole_groups     whether `split` must keep the responses of a prompt together.
    """

    logp_BT: Tensor
    old_logp_BT: Tensor
    mask_BT: Tensor
    rewards_B: Tensor
    group_B: Tensor
    ref_logp_BT: Tensor | None = None
    rollout_logp_BT: Tensor | None = None
    entropy_BT: Tensor | None = None
    greedy_rewards_B: Tensor | None = None
    bonus_B: Tensor | None = None
    totals: Totals | None = None

    advantages_BT: Tensor | None = None
    weight_BT: Tensor | None = None
    selected_BT: Tensor | None = None
    target_B: Tensor | None = None
    list_logp_B: Tensor | None = None
    zero_variance_B: Tensor | None = None
    group_size_B: Tensor | None = None
    group_tokens_B: Tensor | None = None
    row_B: Tensor | None = None
    whole_groups: bool = False

    def __post_init__(self) -> None:
        shape = self.logp_BT.shape
        if len(shape) != 2:
            raise ValueError(f"logp_BT has shape {tuple(shape)}; it must be [responses, tokens]")
        for name, value in self._tensors():
            expected = shape if name.endswith("_BT") else shape[:1]
            if value.shape != expected:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, not {tuple(expected)}")
        if self.group_B.is_floating_point() or self.group_B.is_complex():
            raise ValueError(f"group_B is {self.group_B.dtype}; prompt ids must be integers")
        if self.old_logp_BT.requires_grad:
            raise ValueError("old_logp_BT carries a gradient; detach it")

    def require(self, name: str) -> Tensor:
        """An optional tensor by name; ValueError if this batch lacks it."""
        for field, value in self._tensors():
            if field == name:
                return value
        raise ValueError(f"this objective reads LossInputs.{name}, which is None; supply it")

    def select(self, rows: Tensor | slice) -> Self:
        """The batch of some rows; totals and whole-group numbers stay those of the whole batch.

        Several processes can each prepare the gathered batch and select their own rows; objectives
        with statistics of the whole batch need that.
        """
        changes: dict[str, Any] = {name: value[rows] for name, value in self._tensors()}
        return replace(self, **changes)

    def mini_batches(self, prompts: int) -> Iterator[Self]:
        """Parts of a prepared batch with one optimiser step each, of `prompts` whole groups.

        Advantages stay those of the whole batch; the denominators of the loss are counted anew.
        """
        if self.row_B is None:
            raise ValueError("mini_batches needs a prepared batch; call objective.prepare first")
        if prompts < 1:
            raise ValueError(f"prompts={prompts}: a mini-batch has at least one prompt")
        groups = list(rows_by_group(self.group_B).values())
        for start in range(0, len(groups), prompts):
            rows = list(chain.from_iterable(groups[start : start + prompts]))
            part = self.select(torch.tensor(rows, device=self.group_B.device))
            yield replace(part, totals=Totals.of(part.mask_BT, part.group_B))

    def split(self, size: int) -> Iterator[Self]:
        """Micro-batches of at most `size` responses, whose losses add up to the batch's.

        Rows keep their order. With `whole_groups` each micro-batch holds whole groups, and rows
        are ordered by group if they are not already contiguous; `row_B` says which rows it got.
        Raises ValueError for a batch that is not prepared, or when a group is larger than `size`.
        """
        if self.row_B is None:
            raise ValueError("split needs a prepared batch; call objective.prepare(inputs) first")
        if size < 1:
            raise ValueError(f"size={size}: a micro-batch has at least one response")
        rows = self._rows_by_group(size) if self.whole_groups else self._rows_in_order(size)
        for chunk in rows:
            yield self.select(chunk)

    def _rows_in_order(self, size: int) -> Iterator[slice]:
        for start in range(0, len(self.group_B), size):
            yield slice(start, start + size)

    def _rows_by_group(self, size: int) -> Iterator[Tensor]:
        chunk: list[int] = []
        for group, rows in rows_by_group(self.group_B).items():
            if len(rows) > size:
                raise ValueError(
                    f"group {group} has {len(rows)} responses and a micro-batch {size}; use larger "
                    "micro-batches, or objective.project(batch) on a batch with fresh logp_BT first"
                )
            if len(chunk) + len(rows) > size:
                yield torch.tensor(chunk, device=self.group_B.device)
                chunk = []
            chunk += rows
        if chunk:
            yield torch.tensor(chunk, device=self.group_B.device)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value


def rows_by_group(group_B: Tensor) -> dict[int, list[int]]:
    """The rows of each group, groups in order of first appearance."""
    rows_of: dict[int, list[int]] = {}
    for row, group in enumerate(group_B.tolist()):
        rows_of.setdefault(group, []).append(row)
    return rows_of


def merge_metrics(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The metrics of a batch from those of its micro-batches: sums, and maxima of `…_max`."""
    merged: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            if name not in merged:
                merged[name] = value
            elif name.endswith("_max"):
                merged[name] = torch.maximum(merged[name], value)
            else:
                merged[name] = merged[name] + value
    return merged
