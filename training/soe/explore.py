"""Spectral orthogonal exploration: a weak student shows the teacher a way out of its habits.

Read `explore`. For each problem that the teacher fails greedily: cut its chain at a few steps;
at each cut, sample where the teacher would go (the bias manifold), let the student propose a few
words, keep the proposal that leads furthest out of the manifold, and let the teacher go on from
there. What verifies is a trace. (arXiv 2601.06160; as data generator, arXiv 2602.02545.)

Every list over problems or prefixes goes to a model in one call, which batches it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlvr_decode.training.run.directory import draw_seed
from rlvr_decode.training.soe.config import Search
from rlvr_decode.training.soe.generator import Generator
from rlvr_decode.training.soe.manifold import bias_manifold, orthogonality
from rlvr_decode.training.soe.text import distinct, truncation_points
from rlvr_decode.training.tasks.task import Prompt, Task, judge


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A numbered prompt of the task."""

    index: int
    prompt: Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """A failed chain up to the start of a step, and the probe chosen to go on with.

    omegas are those of all probes of the cut, in the order of `probes`; dimensions is the size of
    the manifold.
    """

    problem: Problem
    kept: str
    probe: str = ""
    omega: float | None = None
    probes: tuple[str, ...] = ()
    omegas: tuple[float, ...] = ()
    dimensions: int | None = None

    @property
    def response(self) -> str:
        """The response so far: kept steps and probe."""
        return self.kept + self.probe

    def seen_by(self, model: Generator) -> str:
        """What a model continues: the prompt in its own form, and the response so far."""
        return model.render(self.problem.prompt) + self.response


def explore(
    problems: Sequence[Problem],
    task: Task,
    teacher: Generator,
    student: Generator,
    search: Search,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """One JSON-able record per problem: its greedy chain, its cuts, its verified traces.

    The prompt in it is as the teacher reads it, in its chat template if the task asks in chats.
    """
    asked = [teacher.render(problem.prompt) for problem in problems]
    chains = teacher.generate(
        asked,
        n=1,
        max_tokens=search.max_tokens,
        temperature=0.0,
        seed=draw_seed("greedy", seed, 0),
    )
    greedy = {p.index: chain.text for p, [chain] in zip(problems, chains, strict=True)}
    right = verified(task, [problem.prompt for problem in problems], list(greedy.values()))
    failed = [problem for problem, is_right in zip(problems, right, strict=True) if not is_right]
    cuts = [
        Cut(problem=problem, kept=greedy[problem.index][:point])
        for problem in failed
        for point in truncation_points(greedy[problem.index], search.cuts, search.step)
    ]
    if search.choice != "none":
        cuts = choose_probes(cuts, teacher, student, search, seed=seed)
    traces = continue_and_verify(cuts, task, teacher, search, seed=seed)
    return [
        {
            "index": problem.index,
            "prompt": text,
            "answer": problem.prompt.answer,
            "greedy": greedy[problem.index],
            "failed": problem in failed,
            "cuts": [
                {"kept": len(c.kept), "probes": c.probes, "omegas": c.omegas, "chosen": c.omega}
                for c in cuts
                if c.problem is problem
            ],
            "traces": traces.get(problem.index, []),
        }
        for problem, text in zip(problems, asked, strict=True)
    ]


def choose_probes(
    cuts: Sequence[Cut], teacher: Generator, student: Generator, search: Search, *, seed: int
) -> list[Cut]:
    """Each cut with the probe to go on with; cuts where either model has nothing to say, or where
    no probe reaches `min_omega`, are gone."""
    ahead = teacher.generate(
        [cut.seen_by(teacher) for cut in cuts],
        n=search.lookaheads,
        max_tokens=search.lookahead_tokens,
        temperature=search.teacher_temperature,
        seed=draw_seed("look-ahead", seed, 0),
    )
    proposed = student.generate(
        [cut.seen_by(student) for cut in cuts],
        n=search.probes,
        max_tokens=search.probe_tokens,
        temperature=search.student_temperature,
        seed=draw_seed("probe", seed, 0),
    )
    # A model may stop at once; what says nothing has no hidden state and leads nowhere.
    spoken = [
        ([s.text for s in ahead_N if s.text], [s.text for s in proposed_M if s.text])
        for ahead_N, proposed_M in zip(ahead, proposed, strict=True)
    ]
    open_cuts = [
        (cut, *texts)
        for cut, texts in zip(cuts, spoken, strict=True)
        if len(texts[0]) >= 2 and texts[1]
    ]
    if not open_cuts:
        return []
    hidden = teacher.hidden(
        [cut.seen_by(teacher) for cut, ahead_N, probes_M in open_cuts for _ in ahead_N + probes_M],
        [text for _, ahead_N, probes_M in open_cuts for text in (*ahead_N, *probes_M)],
    )
    chosen = []
    for cut, ahead_N, probes_M in open_cuts:
        n, m = len(ahead_N), len(probes_M)
        lookahead_ND, probe_MD, hidden = hidden.tensor_split([n, n + m])
        manifold = bias_manifold(lookahead_ND, k=search.k, eps=search.eps)
        omegas = orthogonality(probe_MD, manifold).tolist()
        best = max(range(m), key=omegas.__getitem__)
        if search.choice == "random":
            rng = random.Random(f"choice/{seed}/{cut.problem.index}/{len(cut.kept)}")
            best = rng.randrange(m)
        if omegas[best] >= search.min_omega:
            chosen.append(
                replace(
                    cut,
                    probe=probes_M[best],
                    omega=omegas[best],
                    probes=tuple(probes_M),
                    omegas=tuple(omegas),
                    dimensions=len(manifold.basis_KD),
                )
            )
    return chosen


def continue_and_verify(
    cuts: Sequence[Cut], task: Task, teacher: Generator, search: Search, *, seed: int
) -> dict[int, list[dict[str, Any]]]:
    """Verified, finished, distinct traces of each problem, by its number, with where they are from.

    Traces of one problem are taken in order of Ω, so that of near-duplicates the furthest out
    stays.
    """
    continued = teacher.generate(
        [cut.seen_by(teacher) for cut in cuts],
        n=search.continuations,
        max_tokens=search.max_tokens,
        temperature=search.teacher_temperature,
        seed=draw_seed("continue", seed, 0),
    )
    finished = [
        (cut, cut.response + sample.text)
        for cut, samples in zip(cuts, continued, strict=True)
        for sample in samples
        if sample.finished
    ]
    right = verified(task, [c.problem.prompt for c, _ in finished], [text for _, text in finished])
    found: dict[int, list[dict[str, Any]]] = {}
    for (cut, response), is_right in zip(finished, right, strict=True):
        if is_right:
            trace = {
                "response": response,
                "kept": len(cut.kept),
                "probe": cut.probe,
                "omega": cut.omega,
                "dimensions": cut.dimensions,
            }
            found.setdefault(cut.problem.index, []).append(trace)
    for index, traces in found.items():
        traces.sort(key=lambda trace: -(trace["omega"] or 0.0))
        places = distinct([trace["response"] for trace in traces], search.max_similarity)
        found[index] = [traces[place] for place in places]
    return found


def verified(task: Task, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[bool]:
    """Which responses earn the whole reward, judged in one call; what is skipped does not."""
    rewards, _ = judge(task, prompts, responses)
    return [reward is not None and reward >= 1 for reward in rewards]
