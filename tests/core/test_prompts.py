"""Prompts from a file are the ids that the server would make of them."""

import json

import pytest
from transformers import AutoTokenizer

from rlvr_decode import Pair
from rlvr_decode.prompts import read_prompts


@pytest.fixture(scope="module")
def tiny():
    return Pair.open("tiny")


@pytest.fixture(scope="module")
def decode(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny.tokenizer_directory)
    return lambda prompts: [tokenizer.decode(prompt) for prompt in prompts]


def test_lines_of_text(tiny, decode, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("1+2=?\n\n3+4=?\n")
    assert decode(read_prompts(file, tiny)) == ["<bos>1+2=?", "<bos>3+4=?"]
    assert decode(read_prompts(file, tiny, chat=True)) == ["<bos>1+2=?\n", "<bos>3+4=?\n"]


def test_json_lines_of_text_and_messages(tiny, decode, tmp_path):
    file = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "3+4=?"}]
    lines = [{"prompt": "1+2=?\n", "answer": "3"}, {"prompt": messages}]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert decode(read_prompts(file, tiny)) == ["<bos>1+2=?\n", "<bos>3+4=?\n"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "x"}', "prompts.jsonl:2: must be an object"),
        ("{", "prompts.jsonl:2: must be an object"),
        ('["x"]', "prompts.jsonl:2: must be an object"),
        ('{"prompt": 5}', "prompts.jsonl:2: prompt=5: must be text or a list"),
        ('{"prompt": []}', r"prompts.jsonl:2: prompt=\[\]"),
    ],
)
def test_what_is_no_prompt_is_named_by_line(tiny, tmp_path, line, words):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "x"}\n' + line)
    with pytest.raises(ValueError, match=words):
        read_prompts(file, tiny)


def test_an_empty_file_is_refused(tiny, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="prompts.txt: holds no prompts"):
        read_prompts(tmp_path / "prompts.txt", tiny)
