"""Whole runs of two micro models with different tokenizers: files, resuming, controls."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rlvr_decode.testing import make_checkpoints
from rlvr_decode.training.config import Task
from rlvr_decode.training.run.disk import SaveError
from rlvr_decode.training.run.lock import held
from rlvr_decode.training.soe import run as soe_run
from rlvr_decode.training.soe.config import SOE, Search
from rlvr_decode.training.soe.run import collect, main, read_records, summary
from rlvr_decode.training.tasks import data
from rlvr_decode.training.tasks.task import Prompt


class EvenLength:
    """Right is an even number of characters, which a random model writes half the time."""

    def prompt(self, index, *, seed, split):
        return Prompt(text=f"{index}+1=?\n", answer="even")

    def reward(self, prompt, response):
        return float(len(response) % 2 == 0)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A byte-level Llama: another family and another tokenizer than the teacher's."""
    return make_checkpoints(tmp_path_factory.mktemp("student"), architecture="llama")[0]


@pytest.fixture
def config(micro_base, student, tmp_path, monkeypatch):
    monkeypatch.setitem(data.TASKS, "even", EvenLength)
    return SOE(
        name="micro",
        task=Task(name="even"),
        teacher=str(micro_base),
        student=str(student),
        out=str(tmp_path / "runs"),
        problems=10,
        problems_at_once=4,
        search=Search(step="[0-9]", lookaheads=4, probes=4, max_tokens=30, lookahead_tokens=6),
    )


def test_every_trace_verifies_and_says_where_it_is_from(config) -> None:
    traces = [json.loads(line) for line in collect(config).open(encoding="utf-8")]
    assert len(traces) >= 5
    for trace in traces:
        assert len(trace["response"]) % 2 == 0
        assert trace["prompt"] == f"{trace['provenance']['index']}+1=?\n"
        assert trace["provenance"]["teacher"] == config.teacher
        assert trace["provenance"]["choice"] == "orthogonal"
        kept = trace["provenance"]["kept"]
        assert trace["response"][kept:].startswith(trace["provenance"]["probe"])


def test_orthogonal_probes_lead_further_out_than_random_ones(config) -> None:
    omegas = {}
    for choice in ("orthogonal", "random"):
        search = replace(config.search, choice=choice)
        directory = collect(replace(config, name=choice, search=search)).parent
        omegas[choice] = summary(read_records(directory))
    assert omegas["orthogonal"]["omega_chosen"] > omegas["random"]["omega_chosen"]
    assert omegas["orthogonal"]["omega_all"] == pytest.approx(omegas["random"]["omega_all"])


def test_the_control_without_probes_runs_without_a_student(config) -> None:
    search = replace(config.search, choice="none")
    traces = collect(replace(config, search=search)).read_text(encoding="utf-8").splitlines()
    assert traces
    assert all(json.loads(line)["provenance"]["probe"] == "" for line in traces)


def test_a_killed_run_goes_on_to_the_same_bytes(config, monkeypatch) -> None:
    whole = collect(replace(config, name="whole"))

    class Killed(Exception):
        pass

    explore, chunks = soe_run.explore, []

    def dying(problems, *arguments, **settings):
        if len(chunks) == 2:
            raise Killed
        chunks.append(problems)
        return explore(problems, *arguments, **settings)

    monkeypatch.setattr(soe_run, "explore", dying)
    killed = replace(config, name="killed")
    with pytest.raises(Killed):
        collect(killed)
    monkeypatch.setattr(soe_run, "explore", explore)
    log = whole.parent.parent / "killed" / "problems.jsonl"
    assert len(log.read_text().splitlines()) == 2
    with log.open("a") as file:
        file.write('{"step": 3, "problems": [{"ind')
    resumed = collect(killed)
    ours, theirs = ((p.parent / "problems.jsonl").read_bytes() for p in (resumed, whole))
    assert ours == theirs
    assert resumed.read_text() == whole.read_text().replace('"whole"', '"killed"')


def test_two_at_once_and_a_full_disk_are_told_by_name(config) -> None:
    directory = Path(config.out) / config.name
    message = r"micro: process \d+ on .* is at work here"
    with held(directory), pytest.raises(ValueError, match=message):
        collect(config)
    full = directory / "traces.jsonl.tmp"
    full.symlink_to("/dev/full")
    with pytest.raises(SaveError, match=r"traces.jsonl: could not be written: .* No space left"):
        collect(config)
    full.unlink()
    assert collect(config).read_text()


def test_a_finished_run_opens_no_model(config) -> None:
    collect(config)

    class Untouched:
        def generate(self, *_, **__):
            raise AssertionError

        hidden = generate

    assert collect(config, teacher=Untouched(), student=Untouched()).exists()


def test_another_recipe_in_the_same_place_is_refused(config) -> None:
    collect(config)
    with pytest.raises(ValueError, match="seed=0 there, 1 here"):
        collect(replace(config, seed=1))


def test_the_command_reads_a_recipe_and_overrides(config, tmp_path, capsys) -> None:
    recipe = tmp_path / "micro.toml"
    recipe.write_text(
        f'name = "cli"\nteacher = "{config.teacher}"\nstudent = "{config.student}"\n'
        f'out = "{config.out}"\nproblems = 2\n[task]\nname = "even"\n[search]\nmax_tokens = 8\n'
    )
    assert main([str(recipe), "search.cuts=1"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("cli/traces.jsonl")
    assert main([str(recipe), "search.cut=1"]) == 2
    assert "search: unknown cut" in capsys.readouterr().err
