"""The tasks a recipe can name, and prompts read from tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rlvr_decode.training.option_types import check_options
from rlvr_decode.training.rewards.judging import Judge, read_rewards
from rlvr_decode.training.rewards.verifiable import FINAL
from rlvr_decode.training.tasks.addition import Addition
from rlvr_decode.training.tasks.prompts import PromptSets
from rlvr_decode.training.tasks.swaps import Swaps
from rlvr_decode.training.tasks.tables import READERS, read_prompts
from rlvr_decode.training.tasks.task import Prompt, Split, Task


class Table:
    """Prompts and answers from a table; `jsonl`, `csv`, `parquet` and `datasets` say which kind.

    path           the training prompts, in a fresh seeded order each epoch: a file, or for
                   `datasets` PLACE:SPLIT or PLACE:CONFIG:SPLIT.
    held_out_path  the evaluation prompts.
    reward         a name, a table {name, weight, options…}, or a list of those: see `REWARDS`.
    prompt_column  text, or chat messages [{role, content}, …].
    answer_column  text, or an integer.
    answer_after   only what follows its last occurrence is the answer, as "####" in GSM8K.
    template       what is asked, "{prompt}" standing for the text.
    workers, time_out, memory_gb  of the judging processes: see `Judge`.
    """

    def __init__(
        self,
        kind: str = "jsonl",
        /,
        *,
        path: str,
        held_out_path: str | None = None,
        reward: str | Mapping[str, Any] | Sequence[Any] = "last_number",
        prompt_column: str = "prompt",
        answer_column: str = "answer",
        answer_after: str | None = None,
        template: str = "{prompt}",
        workers: int = 2,
        time_out: float = 5.0,
        memory_gb: float = 4.0,
    ) -> None:
        if "{prompt}" not in template:
            raise ValueError(f"template={template!r}: needs {{prompt}} where the text goes")
        # Rewards without a rule for it, and several, leave a response its own answer.
        self._answer = FINAL.get(reward, str) if isinstance(reward, str) else str
        self._judge = Judge(
            read_rewards(reward), workers=workers, time_out=time_out, memory_gb=memory_gb
        )

        def read(each: str) -> list[Prompt]:
            return read_prompts(
                READERS[kind](each),
                each,
                prompt_column=prompt_column,
                answer_column=answer_column,
                answer_after=answer_after,
                template=template,
            )

        self._prompts = PromptSets(
            read(path),
            None if held_out_path is None else read(held_out_path),
            "task.options.held_out_path",
        )

    @property
    def rows(self) -> int:
        """How many training prompts there are; beyond, a new epoch begins."""
        return len(self._prompts.train)

    def prompt(self, index: int, *, seed: int, split: Split) -> Prompt:
        return self._prompts.prompt(index, seed=seed, split=split)

    def reward(self, prompt: Prompt, response: str) -> float:
        return self.judge([prompt], [response])[0] or 0.0

    def answer(self, response: str) -> str:
        return self._answer(response)

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        return self._judge.judge(responses, [prompt.answer for prompt in prompts])

    def take_counts(self) -> dict[str, float]:
        return self._judge.take_counts()


TASKS: dict[str, Callable[..., Task]] = {
    "add3": Addition,
    "swaps": Swaps,
    **{kind: partial(Table, kind) for kind in READERS},
}

_GYM = "reasoning_gym"


def make_task(name: str, options: dict[str, Any]) -> Task:
    """The task of that name, with its options; `reasoning_gym:NAME` is that package's task."""
    if name.partition(":")[0] == _GYM:
        from rlvr_decode.training.tasks.reasoning_gym import ReasoningGym

        make: Callable[..., Task] = partial(ReasoningGym, name.partition(":")[2])
    elif name in TASKS:
        make = TASKS[name]
    else:
        known = ", ".join([*TASKS, f"{_GYM}:NAME"])
        raise ValueError(f"task.name={name!r}: unknown; known: {known}")
    check_options(make, options, f"task {name}")
    return make(**options)
