"""Tools that know nothing of strengths, unchanged: lm-eval by the model's name, and `evaluate`."""

import json
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from rlvr_decode.__main__ import main

TASKS = Path(__file__).parents[2] / "benchmarks" / "lm_eval"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The task files as a user has them, their questions found from any directory."""
    copy = tmp_path_factory.mktemp("lm_eval")
    for file in TASKS.glob("*.yaml"):
        text = file.read_text().replace("test: add3.jsonl", f"test: {TASKS / 'add3.jsonl'}")
        (copy / file.name).write_text(text)
    return TaskManager(include_path=str(copy), include_defaults=False)


def exact_match(tasks, server, model, task="add3", kind="completions", limit=60, **options):
    arguments = {"model": model, "base_url": f"{server}/v1/{kind}", "num_concurrent": 4}
    chat = kind == "chat/completions"
    found = lm_eval.simple_evaluate(
        model="local-chat-completions" if chat else "local-completions",
        model_args=arguments
        | ({"eos_string": "<eos>"} if chat else {"tokenizer_backend": None})
        | {"tokenized_requests": False, "max_retries": 1},
        tasks=[task],
        task_manager=tasks,
        limit=limit,
        apply_chat_template=chat,
        bootstrap_iters=0,
        **options,
    )
    return found["results"][task]["exact_match,answer"]


@pytest.fixture(scope="module")
def by_name(tasks, server, tmp_path_factory):
    cache = tmp_path_factory.mktemp("huggingface")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("datasets.config.HF_DATASETS_CACHE", str(cache))
        names = ("tiny@base", "tiny@rlvr", "tiny@1.0")
        return {name: exact_match(tasks, server, name) for name in names}


def test_lm_eval_sees_each_strength_by_its_name(by_name):
    # Greedy, of 2000 held-out sums: base .28, rlvr .77, strength 1 .92; here of 60.
    assert by_name["tiny@base"] < 0.55 < by_name["tiny@rlvr"]
    assert by_name["tiny@base"] + 0.2 < by_name["tiny@1.0"] > 0.8


def test_lm_eval_chats(tasks, server, by_name):
    found = exact_match(tasks, server, "tiny@1.0", "add3_chat", "chat/completions")
    assert found == pytest.approx(by_name["tiny@1.0"], abs=0.02)


def evaluated(server, out, *flags):
    asked = ["--task", "add3", "--prompts", "30", "--confirm", "0", "--max-tokens", "40"]
    endpoint = ["--endpoint", f"{server}/v1", "--rival-temperature", "-o", str(out)]
    assert main(["evaluate", "tiny", *asked, *endpoint, *flags]) == 0
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()[1:]]
    means = {}
    for row in rows:
        setting = row["arm"]["extrapolation"]
        means.setdefault((setting["strength"], setting["gate"]), []).extend(row["rewards"])
    return {key: sum(values) / len(values) for key, values in means.items()}, rows


def test_evaluate_asks_the_endpoint_for_strengths_and_gates(server, tmp_path):
    gate = ["--gate", "none", "delta", "--threshold", "-0.3", "--primary", "base"]
    means, rows = evaluated(server, tmp_path, "--strength", "3", *gate)
    assert set(means) == {(0.0, "none"), (-1.0, "none"), (3.0, "none"), (3.0, "delta")}
    assert means[-1.0, "none"] < means[0.0, "none"] < means[3.0, "none"]
    assert means[3.0, "delta"] > means[-1.0, "none"]
    gated = [row for row in rows if row["arm"]["extrapolation"]["gate"] == "delta"]
    assert all(0 <= rate <= 1 for row in gated for rate in row["rates"])
    assert 0.005 < sum(row["rates"][0] for row in gated) / len(gated) < 0.2
    for row in rows:
        assert all(3 < length <= 40 for length in row["lengths"])
        # The server's log-probs are taken before min-p, so they tell no entropy there.
        unknown = row["arm"]["min_p"] > 0
        assert all((entropy is None) == unknown for entropy in row["entropies"])
        assert all(0 <= entropy < 1 for entropy in row["entropies"] if entropy is not None)


def test_evaluate_by_name_says_the_same_to_a_server_that_takes_names_only(server, tmp_path):
    named, rows = evaluated(server, tmp_path / "named", "--strength", "1", "--by-name", "--chat")
    field, also = evaluated(server, tmp_path / "field", "--strength", "1", "--chat")
    assert named == field
    assert [row["lengths"] for row in rows] == [row["lengths"] for row in also]


def test_a_model_that_is_not_served_is_said(server, tmp_path, capsys):
    flags = ["--task", "add3", "--endpoint", f"{server}/v1", "--model", "huge", "-o", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(["evaluate", "tiny", *flags])
    words = capsys.readouterr().err
    assert "does not serve 'huge' but tiny" in words and "--model" in words
