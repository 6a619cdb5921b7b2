"""The method on scripted models, where every choice can be foreseen."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rlvr_decode.training.soe.config import Search
from rlvr_decode.training.soe.explore import Problem, explore
from rlvr_decode.training.soe.generator import Sample
from rlvr_decode.training.tasks.task import Prompt

# What the scripted teacher thinks when it reads a continuation: two directions are its habit.
THOUGHTS = {"left": [1.0, 0, 0], "right": [-1.0, 0, 0], "up": [0, 1.0, 0], "down": [0, -1.0, 0]}
THOUGHTS |= {"habit ": [2.0, 1, 0], "half ": [1.0, 0, 1], "new ": [0.1, 0, 2]}


class Teacher:
    """Fails greedily on every problem but "easy"; solves what goes on from the probe "new "."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, float]] = []

    def render(self, prompt: Prompt) -> str:
        return prompt.text

    def generate(
        self, texts: Sequence[str], *, n: int, max_tokens: int, temperature: float, seed: int
    ) -> list[list[Sample]]:
        self.calls.append((len(texts), temperature))
        if temperature == 0:
            return [[Sample("42" if "easy" in t else "One. Two. 7", True)] for t in texts]
        if max_tokens == 32:
            return [[Sample(word, False) for word in ("left", "right", "up", "down")]] * len(texts)
        return [self.solve(text) for text in texts]

    def solve(self, text: str) -> list[Sample]:
        if "new" in text:
            return [Sample("42", True), Sample("idea 42", True), Sample("long 42", False)]
        return [Sample("7", True)] * 3

    def hidden(self, prefixes: Sequence[str], continuations: Sequence[str]) -> Tensor:
        return torch.tensor([THOUGHTS[text] for text in continuations])


class Student:
    def __init__(self, *proposals: str) -> None:
        self.proposals = proposals
        self.read: list[str] = []

    def render(self, prompt: Prompt) -> str:
        return f"student: {prompt.text}"

    def generate(
        self, texts: Sequence[str], *, n: int, max_tokens: int, temperature: float, seed: int
    ) -> list[list[Sample]]:
        self.read += texts
        return [[Sample(text, False) for text in self.proposals]] * len(texts)

    def hidden(self, prefixes: Sequence[str], continuations: Sequence[str]) -> Tensor:
        raise AssertionError("only the teacher's hidden states count")


class FortyTwo:
    def reward(self, prompt: Prompt, response: str) -> float:
        return float(response.endswith("42"))


SEARCH = Search(cuts=2, lookaheads=4, probes=3, continuations=3)
PROBLEMS = [
    Problem(index=7, prompt=Prompt(text="easy\n", answer="42")),
    Problem(index=8, prompt=Prompt(text="hard\n", answer="42")),
]


def run(search: Search = SEARCH, student: Student | None = None) -> list[dict]:
    student = student or Student("habit ", "new ", "half ")
    return explore(PROBLEMS, FortyTwo(), Teacher(), student, search, seed=0)


def test_only_greedy_failures_are_reopened() -> None:
    easy, hard = run()
    assert (easy["index"], easy["failed"], easy["cuts"], easy["traces"]) == (7, False, [], [])
    assert (hard["index"], hard["failed"], hard["greedy"]) == (8, True, "One. Two. 7")


def test_the_probe_furthest_out_of_the_habit_is_stitched() -> None:
    _, hard = run()
    assert [cut["kept"] for cut in hard["cuts"]] == [0, 5]
    for cut in hard["cuts"]:
        assert cut["omegas"] == pytest.approx((0, 2 / (0.1**2 + 4) ** 0.5, 0.5**0.5), abs=1e-6)
        assert cut["chosen"] == max(cut["omegas"])
    assert {trace["probe"] for trace in hard["traces"]} == {"new "}


def test_traces_are_stitched_text_that_verifies_and_is_finished() -> None:
    _, hard = run()
    assert sorted(trace["response"] for trace in hard["traces"]) == [
        "One. new 42",
        "One. new idea 42",
        "new 42",
        "new idea 42",
    ]
    for trace in hard["traces"]:
        assert trace["response"][: trace["kept"]] == "One. Two. 7"[: trace["kept"]]
        assert trace["dimensions"] == 2
    strict = Search(cuts=2, lookaheads=4, probes=3, continuations=3, max_similarity=0.5)
    assert len(run(strict)[1]["traces"]) < 4


def test_a_random_probe_is_sometimes_another() -> None:
    chosen = set()
    for seed in range(20):
        records = explore(
            PROBLEMS,
            FortyTwo(),
            Teacher(),
            Student("habit ", "new ", "half "),
            Search(choice="random", cuts=2, lookaheads=4),
            seed=seed,
        )
        chosen |= {cut["chosen"] for cut in records[1]["cuts"]}
        assert all(cut["chosen"] in cut["omegas"] for cut in records[1]["cuts"])
    assert len(chosen) == 3


def test_without_probes_nobody_asks_the_student() -> None:
    records = run(Search(choice="none", cuts=2), Student())
    assert records[1]["traces"] == []
    assert [cut["probes"] for cut in records[1]["cuts"]] == [(), ()]


def test_cuts_without_a_good_enough_probe_are_left() -> None:
    assert (
        run(Search(cuts=2, lookaheads=4, min_omega=0.9), Student("habit ", "half "))[1]["cuts"]
        == []
    )
    assert run(SEARCH, Student("", ""))[1]["cuts"] == []


def test_calls_are_batched_over_problems_and_cuts() -> None:
    teacher = Teacher()
    many = [Problem(index=i, prompt=Prompt(text=f"hard {i}\n", answer="42")) for i in range(5)]
    explore(many, FortyTwo(), teacher, Student("new "), SEARCH, seed=0)
    assert teacher.calls == [(5, 0.0), (10, 0.7), (10, 0.7)]


def test_each_model_reads_the_prompt_in_its_own_form() -> None:
    student = Student("new ")
    _, hard = run(SEARCH, student)
    assert student.read == ["student: hard\n", "student: hard\nOne. "]
    assert hard["prompt"] == "hard\n"


class Together:
    """Judges batches, and skips what is longest."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        self.sizes.append(len(responses))
        assert [prompt.answer for prompt in prompts] == ["42"] * len(responses)
        return [None if "idea" in text else float(text.endswith("42")) for text in responses]

    def take_counts(self) -> dict[str, float]:
        return {}


def test_responses_are_judged_in_batches_and_skipped_ones_are_no_traces() -> None:
    task = Together()
    _, hard = explore(PROBLEMS, task, Teacher(), Student("new "), SEARCH, seed=0)
    # Two greedy chains, then two finished continuations of each of two cuts.
    assert task.sizes == [2, 4]
    assert [trace["response"] for trace in hard["traces"]] == ["new 42", "One. new 42"]


def test_bad_settings_name_the_value() -> None:
    with pytest.raises(ValueError, match=r"search.choice='best'"):
        Search(choice="best")
    with pytest.raises(ValueError, match=r"search.cuts=0"):
        Search(cuts=0)
