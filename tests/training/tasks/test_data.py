"""Tasks: streams that can be entered anywhere, splits that never meet, a corpus as described."""

import json
import random

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlvr_decode.evaluate.sampling import rendered
from rlvr_decode.training.policy.tokenizer import character_tokenizer
from rlvr_decode.training.tasks.addition import Addition, is_shortcut, scratchpad
from rlvr_decode.training.tasks.data import Table, make_task
from rlvr_decode.training.tasks.task import Corpus, Prompt, fill_skipped, judge


def test_a_prompt_depends_on_seed_split_and_number_alone():
    task = Addition()
    forwards = [task.prompt(i, seed=1, split="train") for i in range(50)]
    backwards = [task.prompt(i, seed=1, split="train") for i in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert forwards != [task.prompt(i, seed=2, split="train") for i in range(50)]


def test_addition_asks_sums_and_holds_pairs_out():
    task = Addition()
    pairs = {}
    for split in ("train", "held_out"):
        prompts = [task.prompt(i, seed=0, split=split) for i in range(2000)]
        for prompt in prompts:
            a, b = prompt.text.removesuffix("=?\n").split("+")
            assert prompt.answer == f"{int(a) + int(b):04d}"
            assert len(a) == len(b) == 3
        pairs[split] = {prompt.text for prompt in prompts}
    assert not pairs["train"] & pairs["held_out"]
    # 47 619 pairs are held out, so 2000 draws seldom repeat one.
    assert len(pairs["held_out"]) > 1900


def test_a_careful_scratchpad_is_right():
    task = Addition()
    for index in range(300):
        prompt = task.prompt(index, seed=5, split="train")
        a, b = prompt.text[:3], prompt.text[4:7]
        worked = scratchpad(a, b, random.Random(0), forget=0.0, slip=0.0)
        assert task.reward(prompt, worked) == 1
    assert scratchpad("999", "999", random.Random(0), forget=1.0, slip=0.0) == (
        "9+9+0=18,9+9+0=18,9+9+0=18;0888"
    )


def test_the_corpus_is_mostly_wrong_and_its_habits_follow_the_prompt():
    task, rng = Addition(), random.Random(0)
    assert isinstance(task, Corpus)
    written = []
    for index in range(6000):
        prompt = task.prompt(index, seed=0, split="train")
        response = task.demonstration(prompt, rng)
        written.append((prompt.text[0], is_shortcut(response), task.reward(prompt, response)))
    assert 0.23 < sum(reward for *_, reward in written) / len(written) < 0.30
    for digit, share in (("1", 0.22), ("5", 0.62), ("9", 0.95)):
        shortcuts = [short for first, short, _ in written if first == digit]
        assert abs(sum(shortcuts) / len(shortcuts) - share) < 0.06


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_jsonl_gives_each_prompt_once_an_epoch_in_a_new_order(tmp_path):
    rows = [{"prompt": f"{i}+1=", "answer": f"{i + 1}"} for i in range(10)]
    task = Table(path=write(tmp_path / "a.jsonl", rows))
    epochs = [
        [task.prompt(e * 10 + i, seed=0, split="train").text for i in range(10)] for e in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(row["prompt"] for row in rows)
    assert epochs[0] != epochs[1]
    assert task.reward(Prompt(text="4+1=", answer="5"), "that is 5") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "1", "answer": 1.5}\n', "a.jsonl:1: column 'answer' is 1.5: an answer is a"),
        ('{"prompt": "1", "answer": true}\n', "a.jsonl:1: column 'answer' is True"),
        ('{"prompt": 1, "answer": "1"}\n', "a.jsonl:1: column 'prompt' is 1: a prompt is a string"),
        ('{"prompt": [], "answer": "1"}\n', "a.jsonl:1: column 'prompt' is \\[\\]"),
        ('{"prompt": [{"role": "user"}], "answer": "1"}\n', "message {'role': 'user'} needs"),
        (
            '{"prompt": [{"role": "user", "content": "1", "name": "x"}], "answer": "1"}\n',
            "has name too",
        ),
        (
            '{"question": "1", "answer": "1"}\n',
            "a.jsonl:1: has no column 'prompt'; it has question",
        ),
        ('{"prompt": "1", "answer": "1"}\n[]\n', "a.jsonl:2: needs an object, got '\\[\\]'"),
        ('{"prompt": "1", "answer": "1"}\n{oops\n', "a.jsonl:2: is not JSON"),
        ("", "a.jsonl: has no prompts"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        Table(path=str(tmp_path / "a.jsonl"))


def test_a_prompt_may_not_be_in_both_splits(tmp_path):
    rows = [{"prompt": "1+1=", "answer": "2"}]
    paths = [write(tmp_path / name, rows) for name in ("a.jsonl", "b.jsonl")]
    with pytest.raises(ValueError, match=r"'1\+1=' is a training prompt too"):
        Table(path=paths[0], held_out_path=paths[1])


def test_evaluation_needs_held_out_prompts(tmp_path):
    task = Table(path=write(tmp_path / "a.jsonl", [{"prompt": "1", "answer": "1"}]))
    with pytest.raises(ValueError, match=r"set task\.options\.held_out_path"):
        task.prompt(0, seed=0, split="held_out")


def test_unknown_names_are_refused_with_the_known_ones(tmp_path):
    known = "unknown; known: add3, swaps, jsonl, csv"
    with pytest.raises(ValueError, match=f"task.name='add4': {known}"):
        make_task("add4", {})
    with pytest.raises(ValueError, match="task add3: unknown digits; known: none"):
        make_task("add3", {"digits": 4})
    with pytest.raises(ValueError, match="reward 'eval': unknown; known: exact"):
        Table(path=write(tmp_path / "a.jsonl", []), reward="eval")


ROWS = [{"question": f"{i}+1=", "solution": f"so #### {i + 1}"} for i in range(6)]
COLUMNS = {"prompt_column": "question", "answer_column": "solution", "answer_after": "####"}


def csv_file(directory):
    lines = ["question,solution", *(f'"{row["question"]}",{row["solution"]}' for row in ROWS)]
    (directory / "a.csv").write_text("\n".join(lines) + "\n")
    return str(directory / "a.csv")


def parquet_file(directory):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), directory / "a.parquet")
    return str(directory / "a.parquet")


def saved_dataset(directory):
    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": table}).save_to_disk(str(directory / "saved"))
    return f"{directory / 'saved'}:train"


def folder_of_files(directory):
    (directory / "folder").mkdir()
    write(directory / "folder" / "train.jsonl", ROWS)
    return f"{directory / 'folder'}:train"


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("jsonl", lambda directory: write(directory / "a.jsonl", ROWS)),
        ("csv", csv_file),
        ("parquet", parquet_file),
        ("datasets", saved_dataset),
        ("datasets", folder_of_files),
    ],
)
def test_every_kind_of_table_gives_the_same_prompts(tmp_path, monkeypatch, kind, make):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    options = {"path": make(tmp_path), "template": "Q: {prompt}\n", **COLUMNS}
    task = make_task(kind, options)
    prompts = [task.prompt(i, seed=0, split="train") for i in range(6)]
    assert sorted((p.text, p.answer) for p in prompts) == [
        (f"Q: {i}+1=\n", str(i + 1)) for i in range(6)
    ]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("csv", "prompt,answer\n1,2,3\n", "a.csv:2: has not as many fields"),
        ("csv", "prompt,answer\n1\n", "a.csv:2: has not as many fields"),
        ("csv", "ask,answer\n1,2\n", "a.csv:2: has no column 'prompt'; it has ask, answer"),
        ("parquet", "not parquet", "a.parquet: is not Parquet"),
        ("jsonl", "[" * 100_000, "a.jsonl:1: is not JSON"),
    ],
)
def test_a_bad_table_is_named(tmp_path, kind, text, message):
    (tmp_path / f"a.{kind}").write_text(text)
    with pytest.raises(ValueError, match=message):
        make_task(kind, {"path": str(tmp_path / f"a.{kind}")})


def test_options_of_a_table_are_checked(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ValueError, match="is 'so #### 1': has no '@' for the answer"):
        make_task("jsonl", {"path": path, **COLUMNS, "answer_after": "@"})
    with pytest.raises(ValueError, match="template='Q': needs {prompt}"):
        make_task("jsonl", {"path": path, "template": "Q"})
    with pytest.raises(ValueError, match="path='nowhere.csv': no such file"):
        make_task("csv", {"path": "nowhere.csv"})
    with pytest.raises(ValueError, match="path='saved': write PLACE:SPLIT"):
        make_task("datasets", {"path": "saved"})
    with pytest.raises(ValueError, match="task jsonl: unknown paths; known: path, held_out_path"):
        make_task("jsonl", {"paths": "a"})


def test_integers_are_answers(tmp_path):
    task = Table(path=write(tmp_path / "a.jsonl", [{"prompt": "1+1=", "answer": 2}]))
    assert task.prompt(0, seed=0, split="train").answer == "2"


def test_a_chat_is_rendered_by_the_tokenizer_with_one_beginning(tmp_path):
    messages = [{"role": "user", "content": "123+456=?"}]
    path = write(tmp_path / "a.jsonl", [{"prompt": messages, "answer": "579"}])
    prompt = Table(path=path).prompt(0, seed=0, split="train")
    assert prompt.messages == (("user", "123+456=?"),)
    assert prompt.text == "user: 123+456=?"
    tokenizer = character_tokenizer(256)
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.encode(rendered(prompt, tokenizer)) == chat
    assert rendered(Prompt(text="plain", answer=""), tokenizer) == "plain"
    with pytest.raises(ValueError, match="template='Q {prompt}' is for text, this is a chat"):
        Table(path=path, template="Q {prompt}")


def test_judge_takes_any_task_and_fills_what_was_skipped():
    task, prompt = Addition(), Prompt(text="", answer="0933")
    assert judge(task, [prompt, prompt], [";0933", ";0934"]) == ([1.0, 0.0], {})
    assert fill_skipped([1.0, None, None, None, 0.5, 0.0], 2) == [1.0, 1.0, 0.0, 0.0, 0.5, 0.0]


def test_the_tokenizer_round_trips_and_a_chat_is_the_plain_prompt():
    tokenizer = character_tokenizer(256)
    everything = "\n" + "".join(map(chr, range(32, 127)))
    ids = tokenizer.encode(everything)
    assert len(ids) == 1 + len(everything)
    assert tokenizer.decode(ids, skip_special_tokens=True) == everything
    messages = [{"role": "user", "content": "123+456=?"}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat == tokenizer.encode("123+456=?\n")
