"""Every difference that would make two models disagree without an error is found by name."""

import json
import shutil
from pathlib import Path

import pytest

from rlvr_decode.pair import Pair, write_pair
from rlvr_decode.pair_check import disagreements, engine_stops, stop_token_ids
from rlvr_decode.testing import byte_tokenizer, make_checkpoints

ARCHITECTURES = ("qwen3", "qwen2", "llama")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """One base and one rlvr that agree, of each architecture."""
    return {
        name: make_checkpoints(tmp_path_factory.mktemp(name), architecture=name)
        for name in ARCHITECTURES
    }


@pytest.fixture
def checkpoints(made, tmp_path):
    """Copies of a base and an rlvr to damage."""
    return tuple(Path(shutil.copytree(path, tmp_path / path.name)) for path in made["qwen3"])


def edit(file, **changes):
    """Set keys of a JSON file; None removes."""
    value = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: each for key, each in value.items() if each is not None}))


def compare(checkpoints):
    base, rlvr = checkpoints
    return disagreements(base, rlvr, kind="full")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sound_pair_agrees(made, architecture):
    assert compare(made[architecture]) == []


def test_another_depth_is_named(checkpoints):
    edit(checkpoints[0] / "config.json", num_hidden_layers=2, layer_types=None)
    assert "config num_hidden_layers: base has 2, rlvr has 3" in compare(checkpoints)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 128),
        ("intermediate_size", 256),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("head_dim", 16),
        ("rms_norm_eps", 1e-5),
        ("hidden_act", "gelu"),
        ("tie_word_embeddings", False),
        ("attention_bias", True),
        ("max_position_embeddings", 4096),
        ("sliding_window", 128),
        ("architectures", ["Qwen2ForCausalLM"]),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e6}),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
        ("quantization_config", {"quant_method": "fp8"}),
        ("a_key_of_a_later_version", 1),
    ],
)
def test_a_config_key_that_differs_is_named_with_both_values(checkpoints, key, value):
    if key == "sliding_window":
        edit(checkpoints[0] / "config.json", use_sliding_window=True)
    edit(checkpoints[0] / "config.json", **{key: value})
    found = [line for line in compare(checkpoints) if line.startswith(f"config {key}: ")]
    assert len(found) == 1
    assert "base has " in found[0] and "rlvr has " in found[0]


def test_models_of_two_families_are_refused(made):
    found = compare((made["qwen2"][0], made["qwen3"][1]))
    assert "config model_type: base has 'qwen2', rlvr has 'qwen3'" in found


def test_an_older_spelling_of_the_same_config_agrees(checkpoints):
    config = checkpoints[0] / "config.json"
    theta = json.loads(config.read_text())["rope_parameters"]["rope_theta"]
    edit(config, rope_parameters=None, rope_theta=theta, torch_dtype="float32", dtype=None)
    assert compare(checkpoints) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"transformers_version": "4.0.0"},
        {"use_cache": False},
        {"initializer_range": 0.5},
        {"attention_dropout": 0.1},
        {"pad_token_id": 5, "eos_token_id": 7},
        {"vocab_size": 600},
    ],
)
def test_what_cannot_change_an_answer_may_differ(checkpoints, changes):
    edit(checkpoints[0] / "config.json", **changes)
    assert compare(checkpoints) == []


def test_every_mismatch_is_listed_at_once(checkpoints):
    edit(checkpoints[0] / "config.json", rms_norm_eps=1e-3, hidden_act="gelu", vocab_size=100)
    found = "\n".join(compare(checkpoints))
    assert "config rms_norm_eps: base has 0.001, rlvr has 1e-06" in found
    assert "config hidden_act: base has 'gelu', rlvr has 'silu'" in found
    assert f"base: vocab_size=100, but its tokenizer has id {len(byte_tokenizer()) - 1}" in found


def swap_tokens(directory, first, second):
    """Exchange the ids of two tokens of a tokenizer."""
    file = directory / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    file.write_text(json.dumps(tokenizer))


def test_token_ids_that_differ_are_named(checkpoints):
    swap_tokens(checkpoints[1], "a", "b")
    [found] = compare(checkpoints)
    assert found.startswith("tokenizer: 2 tokens have other ids, first 'a' is ")


def test_a_token_that_only_one_model_knows_is_named(checkpoints):
    file = checkpoints[1] / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    added = dict(tokenizer["added_tokens"][0], id=len(byte_tokenizer()), content="<think>")
    tokenizer["added_tokens"].append(added)
    file.write_text(json.dumps(tokenizer))
    new = len(byte_tokenizer())
    assert compare(checkpoints) == [
        f"tokenizer: 1 tokens have other ids, first '<think>' is None in base and {new} in rlvr"
    ]


def test_the_same_vocabulary_cut_differently_is_found(checkpoints):
    file = checkpoints[1] / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(tokenizer))
    [found] = compare(checkpoints)
    assert found.startswith("tokenizer: the same text becomes other tokens: base gives [")


def test_another_beginning_of_sequence_is_found(checkpoints):
    edit(checkpoints[1] / "tokenizer_config.json", bos_token="<pad>")
    assert "tokenizer bos_token_id: base has 1, rlvr has 0" in compare(checkpoints)


def test_another_chat_template_is_no_mismatch(checkpoints):
    (checkpoints[1] / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert compare(checkpoints) == []


@pytest.mark.parametrize("role", [0, 1])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_checkpoint_that_brings_code_is_refused(checkpoints, role, name):
    edit(checkpoints[role] / name, auto_map={"AutoConfig": "evil.Config"})
    (checkpoints[role] / "evil.py").write_text("raise SystemExit('ran')")
    [found] = compare(checkpoints)
    assert found.startswith(f"{('base', 'rlvr')[role]}/{name}: auto_map={{'AutoConfig'")


def test_only_safetensors_are_read(checkpoints):
    (checkpoints[1] / "model.safetensors").rename(checkpoints[1] / "pytorch_model.bin")
    [found] = compare(checkpoints)
    assert found.startswith("rlvr: no *.safetensors in ")
    assert "pytorch_model.bin" in found and "only safetensors are read" in found


def test_a_directory_without_a_config_is_named(checkpoints):
    (checkpoints[0] / "config.json").unlink()
    [found] = compare(checkpoints)
    assert found == f"base: no config.json in {checkpoints[0]}"


def test_an_adapter_needs_its_own_two_files(checkpoints):
    base, adapter = checkpoints
    found = disagreements(base, adapter, kind="adapter")
    assert found[0] == f"rlvr: no adapter_config.json in {adapter}"
    assert found[1].startswith("rlvr: no adapter_model*.safetensors in ")


def test_the_stops_of_all_files_are_united(checkpoints):
    base, rlvr = checkpoints
    edit(base / "config.json", eos_token_id=7)
    edit(base / "generation_config.json", eos_token_id=[9, 8])
    edit(rlvr / "config.json", eos_token_id=2)
    edit(rlvr / "generation_config.json", eos_token_id=None)
    assert stop_token_ids(base, rlvr) == (2, 7, 8, 9)
    # vLLM, like transformers, does not look at config.json once there is a generation config.
    assert engine_stops(base) == [9, 8]
    assert engine_stops(rlvr) == []
    (rlvr / "generation_config.json").unlink()
    assert engine_stops(rlvr) == [2]


@pytest.mark.parametrize("stops", ["2", {"a": 2}, [2, "3"], [[2]], 2.5, True])
def test_stops_that_are_no_token_ids_are_refused_by_file(checkpoints, stops):
    edit(checkpoints[1] / "config.json", eos_token_id=stops)
    with pytest.raises(ValueError, match=r"rlvr/config.json: eos_token_id=.*must be a token id"):
        stop_token_ids(*checkpoints)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused_by_file(checkpoints, text):
    (checkpoints[0] / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"base/generation_config.json: "):
        compare(checkpoints)


def test_an_adapter_that_brings_code_is_refused(checkpoints):
    base, adapter = checkpoints
    (adapter / "config.json").unlink()
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA", "auto_map": {"AutoModel": "evil.Model"}}))
    [found] = disagreements(base, adapter, kind="adapter")
    assert found.startswith("rlvr/adapter_config.json: auto_map={'AutoModel'")
    edit(base / "config.json", auto_map={"AutoConfig": "evil.Config"})
    found = disagreements(base, adapter, kind="adapter")
    assert [line.split(": ")[0] for line in found] == [
        "base/config.json", "rlvr/adapter_config.json",
    ]  # fmt: skip


def test_a_pair_whose_rlvr_would_not_stop_for_base_brings_a_generation_config(checkpoints):
    base, rlvr = checkpoints
    edit(base / "generation_config.json", eos_token_id=[2, 7])
    edit(rlvr / "generation_config.json", temperature=0.7, do_sample=True)
    directory = base.parent
    pair = write_pair(directory, name="stops", base=base, rlvr=rlvr)
    assert pair.generation_config == directory
    written = json.loads((directory / "generation_config.json").read_text())
    assert written["eos_token_id"] == [2, 7] and written["temperature"] == 0.7

    (directory / "generation_config.json").unlink()
    with pytest.raises(ValueError, match=r"would not stop at tokens \[2, 7\]"):
        Pair.open(directory)


def test_a_pair_whose_rlvr_stops_for_both_needs_no_other_generation_config(checkpoints):
    base, rlvr = checkpoints
    pair = write_pair(base.parent, name="stops", base=base, rlvr=rlvr)
    assert pair.generation_config == rlvr
    assert not (base.parent / "generation_config.json").exists()
