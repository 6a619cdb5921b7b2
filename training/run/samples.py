"""Some completions of each step, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlvr_decode.training.rollout.dynamic_sampling import Judged


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One response, and what it earned."""

    prompt: str
    answer: str
    response: str
    reward: float
    tokens: int
    finished: bool


def take(judged: Judged, count: int) -> list[Sample]:
    """The first response to each of the first `count` prompts."""
    prompts, rollouts, rewards_B = judged
    group = len(rewards_B) // len(prompts)
    return [
        Sample(
            prompt=prompt.text,
            answer=prompt.answer,
            response=rollouts.texts[row],
            reward=rewards_B[row].item(),
            tokens=int(rollouts.mask_BT[row].sum()),
            finished=bool(rollouts.finished_B[row]),
        )
        for row, prompt in zip(range(0, count * group, group), prompts, strict=False)
    ]


def table(samples: Sequence[Sample], *, width: int = 100) -> str:
    """The samples side by side; long texts keep their ends, where answers are."""
    column = max(8, (width - 12) // 2)
    rows = [("reward", "prompt", "response")]
    rows += [
        (f"{each.reward:.3g}", _end(each.prompt, column), _end(each.response, column))
        for each in samples
    ]
    return "\n".join(f"{reward:>6}  {prompt:<{column}}  {text}" for reward, prompt, text in rows)


def _end(text: str, width: int) -> str:
    """The last characters of a text, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= width else "…" + text[len(text) + 1 - width :]
