"""Tasks: streams that can be entered anywhere, splits that never meet, a corpus as described."""

import json
import random

import pytest

from rlvr_decode.training.addition import Addition, is_shortcut, scratchpad
from rlvr_decode.training.data import Jsonl, make_task
from rlvr_decode.training.task import Corpus, Prompt
from rlvr_decode.training.tokenizer import character_tokenizer


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
    task = Jsonl(path=write(tmp_path / "a.jsonl", rows))
    epochs = [
        [task.prompt(e * 10 + i, seed=0, split="train").text for i in range(10)] for e in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(row["prompt"] for row in rows)
    assert epochs[0] != epochs[1]
    assert task.reward(Prompt(text="4+1=", answer="5"), "that is 5") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "1", "answer": 1}\n', 'a.jsonl:1: needs strings "prompt" and "answer"'),
        ('{"prompt": "1", "answer": "1"}\n[]\n', "a.jsonl:2: needs strings"),
        ('{"prompt": "1", "answer": "1"}\n{oops\n', "a.jsonl:2: is not JSON"),
        ("", "a.jsonl: has no prompts"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        Jsonl(path=str(tmp_path / "a.jsonl"))


def test_a_prompt_may_not_be_in_both_splits(tmp_path):
    rows = [{"prompt": "1+1=", "answer": "2"}]
    paths = [write(tmp_path / name, rows) for name in ("a.jsonl", "b.jsonl")]
    with pytest.raises(ValueError, match=r"'1\+1=' is a training prompt too"):
        Jsonl(path=paths[0], held_out_path=paths[1])


def test_evaluation_needs_held_out_prompts(tmp_path):
    task = Jsonl(path=write(tmp_path / "a.jsonl", [{"prompt": "1", "answer": "1"}]))
    with pytest.raises(ValueError, match=r"set task\.options\.held_out_path"):
        task.prompt(0, seed=0, split="held_out")


def test_unknown_names_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="task.name='add4': unknown; known: add3, jsonl"):
        make_task("add4", {})
    with pytest.raises(ValueError, match="task add3: unknown digits; known: none"):
        make_task("add3", {"digits": 4})
    with pytest.raises(ValueError, match="reward 'eval': unknown; known: exact"):
        Jsonl(path=write(tmp_path / "a.jsonl", []), reward="eval")


def test_the_tokenizer_round_trips_and_a_chat_is_the_plain_prompt():
    tokenizer = character_tokenizer(256)
    everything = "\n" + "".join(map(chr, range(32, 127)))
    ids = tokenizer.encode(everything)
    assert len(ids) == 1 + len(everything)
    assert tokenizer.decode(ids, skip_special_tokens=True) == everything
    messages = [{"role": "user", "content": "123+456=?"}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat == tokenizer.encode("123+456=?\n")
