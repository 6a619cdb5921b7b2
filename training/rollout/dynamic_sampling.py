"""Dynamic sampling: draw prompts until enough of them have something to teach.

A group whose responses are all right, or all wrong, has no gradient in group-relative objectives
(DAPO, arXiv 2503.14476, §3.2).

B responses, P prompt tokens (padded on the left), T response tokens (padded on the right),
D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from rlvr_decode.training.objectives import informative
from rlvr_decode.training.processes.distributed import Processes
from rlvr_decode.training.rollout.rollout import Rollouts
from rlvr_decode.training.tasks.task import Prompt


class Judged(NamedTuple):
    """Prompts, the groups of responses to them, and their rewards."""

    prompts: list[Prompt]
    rollouts: Rollouts
    rewards_B: Tensor


class Collected(NamedTuple):
    """A batch of informative groups, how many rounds it took and which share was kept."""

    judged: Judged
    rounds: int
    informative: float


def collect(
    draw: Callable[[int], Judged], *, group: int, prompts: int, max_rounds: int
) -> Collected:
    """Draw rounds until `prompts` groups have rewards that differ, or `max_rounds` are spent.

    draw  one round, by number from 0. Fewer groups than asked for make a smaller batch; none at
          all is a ValueError.
    """
    found: list[Judged] = []
    kept = drawn = 0
    for number in range(max_rounds):
        judged = draw(number)
        drawn += len(judged.prompts)
        ids = torch.arange(len(judged.prompts), device=judged.rewards_B.device)
        group_B = ids.repeat_interleave(group)
        useful = informative(judged.rewards_B, group_B)[::group].nonzero().flatten()
        kept += len(useful)
        found.append(_groups(judged, useful[: prompts - sum(len(f.prompts) for f in found)], group))
        if kept >= prompts:
            break
    if kept == 0:
        raise ValueError(
            f"all of {drawn} prompts are always or never answered right ({max_rounds} rounds): "
            "nothing to learn; choose prompts of medium difficulty, larger groups, or "
            "objective.options.dynamic_sampling=false"
        )
    return Collected(_joined(found), len(found), kept / drawn)


def gathered(judged: Judged, tokenizer: PreTrainedTokenizerBase, processes: Processes) -> Judged:
    """The round of all processes, each of which has sampled its share of the prompts.

    Hidden states stay where they are; what reads them computes them again.
    """
    prompts, rollouts, rewards_B = judged
    if processes.size == 1:
        return judged
    tensors = {
        name: processes.everyones(value)
        for name, value in rollouts.tensors().items()
        if name != "hidden_BTD"
    }
    parts = []
    for number, part_B in enumerate(processes.everyones(rewards_B)):
        mine = {name: each[number] for name, each in tensors.items()}
        texts = tokenizer.batch_decode(mine["response_BT"], skip_special_tokens=True)
        parts.append(Judged([], Rollouts(texts=texts, **mine), part_B))
    return _joined(parts)._replace(prompts=prompts)


def _groups(judged: Judged, chosen: Tensor, group: int) -> Judged:
    """The groups of some prompts, by number."""
    rows_B = (chosen[:, None] * group + torch.arange(group, device=chosen.device)).flatten()
    prompts = [judged.prompts[number] for number in chosen.tolist()]
    return Judged(prompts, judged.rollouts.select(rows_B), judged.rewards_B[rows_B])


def _joined(parts: list[Judged]) -> Judged:
    """One batch of several, padded to the longest prompt and response."""
    if len(parts) == 1:
        return parts[0]
    rollouts = [part.rollouts for part in parts]
    before = max(r.prompt_BP.shape[1] for r in rollouts)
    after = max(r.response_BT.shape[1] for r in rollouts)

    def left(tensors: list[Tensor]) -> Tensor:
        return torch.cat([pad(tensor, (before - tensor.shape[1], 0)) for tensor in tensors])

    def right(tensors: list[Tensor]) -> Tensor:
        return torch.cat([pad(tensor, (0, after - tensor.shape[1])) for tensor in tensors])

    joined = Rollouts(
        # What padding holds is masked, so 0 is as good a token as any.
        prompt_BP=left([r.prompt_BP for r in rollouts]),
        prompt_mask_BP=left([r.prompt_mask_BP for r in rollouts]),
        response_BT=right([r.response_BT for r in rollouts]),
        mask_BT=right([r.mask_BT for r in rollouts]),
        logp_BT=right([r.logp_BT for r in rollouts]),
        finished_B=torch.cat([r.finished_B for r in rollouts]),
        texts=[text for r in rollouts for text in r.texts],
        hidden_BTD=_hidden(rollouts, after),
    )
    rewards_B = torch.cat([part.rewards_B for part in parts])
    return Judged([prompt for part in parts for prompt in part.prompts], joined, rewards_B)


def _hidden(parts: list[Rollouts], tokens: int) -> Tensor | None:
    """The hidden states of all parts, if the sampler keeps them."""
    kept = [part.hidden_BTD for part in parts if part.hidden_BTD is not None]
    return torch.cat([pad(h, (0, 0, 0, tokens - h.shape[1])) for h in kept]) if kept else None
