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

from rlvr_decode.training.run import draw_seed
from rlvr_decode.training.soe.config import Search
from rlvr_decode.training.soe.generator import Generator
from rlvr_decode.training.soe.manifold import bias_manifold, orthogonality
from rlvr_decode.training.soe.text import distinct, truncation_points
from rlvr_decode.training.task import Prompt, Task


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
    def text(self) -> str:
        """What a model continues: prompt, kept steps and probe."""
        return self.problem.prompt.text + self.kept + self.probe


def explore(
    problems: Sequence[Problem],
    task: Task,
    teacher: Generator,
    student: Generator,
    search: Search,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """One JSON-able record per problem: its greedy chain, its cuts, its verified traces."""
    chains = teacher.generate(
        [problem.prompt.text for problem in problems],
        n=1,
        max_tokens=search.max_tokens,
        temperature=0.0,
        seed=draw_seed("greedy", seed, 0),
    )
    greedy = {p.index: chain.text for p, [chain] in zip(problems, chains, strict=True)}
    failed = [p for p in problems if task.reward(p.prompt, greedy[p.index]) < 1]
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
            "prompt": problem.prompt.text,
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
        for problem in problems
    ]


def choose_probes(
    cuts: Sequence[Cut], teacher: Generator, student: Generator, search: Search, *, seed: int
) -> list[Cut]:
    """Each cut with the probe to go on with; cuts where either model has nothing to say, or where
    no probe reaches `min_omega`, are gone."""
    ahead = teacher.generate(
        [cut.text for cut in cuts],
        n=search.lookaheads,
        max_tokens=search.lookahead_tokens,
        temperature=search.teacher_temperature,
        seed=draw_seed("look-ahead", seed, 0),
    )
    proposed = student.generate(
        [cut.text for cut in cuts],
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
        [cut.text for cut, ahead_N, probes_M in open_cuts for _ in (*ahead_N, *probes_M)],
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
        [cut.text for cut in cuts],
        n=search.continuations,
        max_tokens=search.max_tokens,
        temperature=search.teacher_temperature,
        seed=draw_seed("continue", seed, 0),
    )
    verified: dict[int, list[dict[str, Any]]] = {}
    for cut, samples in zip(cuts, continued, strict=True):
        for sample in samples:
            response = cut.kept + cut.probe + sample.text
            if sample.finished and task.reward(cut.problem.prompt, response) >= 1:
                trace = {
                    "response": response,
                    "kept": len(cut.kept),
                    "probe": cut.probe,
                    "omega": cut.omega,
                    "dimensions": cut.dimensions,
                }
                verified.setdefault(cut.problem.index, []).append(trace)
    for index, traces in verified.items():
        traces.sort(key=lambda trace: -(trace["omega"] or 0.0))
        places = distinct([trace["response"] for trace in traces], search.max_similarity)
        verified[index] = [traces[place] for place in places]
    return verified
