"""pair.json is read strictly, and opening a pair refuses every way in which two models disagree."""

import json
import shutil
from pathlib import Path

import pytest

from rlvr_decode import pair as pair_module
from rlvr_decode.pair import Pair, locate, write_pair
from rlvr_decode.params import Extrapolation
from rlvr_decode.testing import make_checkpoints


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The directory of a pair that nothing is wrong with."""
    directory = tmp_path_factory.mktemp("pair")
    base, rlvr = make_checkpoints(directory)
    write_pair(
        directory,
        name="mine",
        base=base,
        rlvr=rlvr,
        defaults=Extrapolation(strength=0.5, plausibility=0.05),
        provenance={"steps": 12, "note": "ünï"},
    )
    return directory


@pytest.fixture
def directory(made, tmp_path):
    """A copy of that pair to damage."""
    return Path(shutil.copytree(made, tmp_path / "pair"))


def edit(file, change):
    """Change the value of a JSON file in place."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def test_what_is_written_is_what_is_read(directory):
    pair = Pair.open(directory, verify=True)
    assert (pair.name, pair.directory) == ("mine", directory)
    assert pair.base.directory == directory / "base" and pair.base.kind == "full"
    assert pair.rlvr.directory == directory / "rlvr" and pair.rlvr.kind == "full"
    assert pair.defaults == Extrapolation(strength=0.5, plausibility=0.05)
    assert pair.provenance == {"steps": 12, "note": "ünï"}
    assert set(pair.base.sha256) == {"config.json", "generation_config.json", "model.safetensors"}
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(pair.tokenizer)
    assert pair.stop_token_ids == (2,)


def test_a_pair_is_found_by_directory_file_and_name(directory, monkeypatch, tmp_path):
    assert locate(directory) == locate(directory / "pair.json") == locate(str(directory))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "rlvr-decode" / "pairs" / "fetched"
    shutil.copytree(directory, cached)
    assert locate("fetched") == cached / "pair.json"
    with pytest.raises(ValueError, match=r"no pair 'absent'.* fetched.*`rlvr-decode pair make"):
        locate("absent")
    with pytest.raises(ValueError, match="no pair"):
        locate("../fetched")


def test_a_name_wins_over_a_directory_of_that_name(directory, monkeypatch, tmp_path):
    cached = tmp_path / "rlvr-decode" / "pairs" / "mine"
    shutil.copytree(directory, cached)
    shutil.copytree(directory, tmp_path / "here" / "mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "here")
    assert locate("mine") == cached / "pair.json"
    assert locate("./mine") == tmp_path / "here" / "mine" / "pair.json"


def test_every_bundled_pair_opens_and_is_unchanged():
    """Those whose base is fetched: tests/engine/test_smollm2.py."""
    bundled = sorted((Path(pair_module.__file__).parent / "pairs").glob("*/pair.json"))
    assert bundled
    for file in bundled:
        whole = Pair.read(file.parent.name).base.fetched is None
        pair = Pair.open(file.parent.name, verify=True) if whole else Pair.read(file.parent.name)
        assert pair.name == file.parent.name


WRONG_FILES = [
    # change to the parsed file, key that is named, words
    (lambda p: p.update(format=2), "format=2", "reads format 1"),
    (lambda p: p.update(format=True), "format=True", "reads format 1"),
    (lambda p: p.update(format="1"), "format='1'", "reads format 1"),
    (lambda p: p.pop("format"), "format", "is missing"),
    (lambda p: p.pop("base"), "base", "is missing"),
    (lambda p: p["rlvr"].pop("kind"), "rlvr.kind", "is missing"),
    (lambda p: p["base"].update(kind="full"), "base.kind='full'", "unknown key"),
    (lambda p: p.update(extra=1), "extra=1", "unknown key; known: format"),
    (lambda p: p["base"].update(extra=1), "base.extra=1", "unknown key; known: path"),
    (lambda p: p["tokenizer"].update(extra=1), "tokenizer.extra=1", "unknown key"),
    (lambda p: p.update(name="a/b"), "name='a/b'", "use letters"),
    (lambda p: p.update(name="a@b"), "name='a@b'", "use letters"),
    (lambda p: p.update(name=""), "name=''", "use letters"),
    (lambda p: p.update(name=5), "name=5", "use letters"),
    (lambda p: p.update(base="base"), "base='base'", "must be an object"),
    (lambda p: p.update(provenance=[]), "provenance=[]", "must be an object"),
    (lambda p: p["rlvr"].update(kind="lora"), "rlvr.kind='lora'", "one of full, adapter"),
    (lambda p: p["rlvr"].update(kind=["full"]), "rlvr.kind=['full']", "one of full, adapter"),
    (lambda p: p["base"].update(path=5), "base.path=5", "must be a string"),
    (lambda p: p["base"].update(path="absent"), "base.path='absent'", "no such directory"),
    (lambda p: p["base"].update(path="org/model"), "base.path='org/model'", "needs its `revision`"),
    (lambda p: p["base"].update(path="../pair/base/../.."), "base.path=", "leads out"),
    (lambda p: p["base"].update(path="/etc"), "base.path='/etc'", "leads out"),
    (lambda p: p["base"].update(path=".."), "base.path='..'", "leads out"),
    (lambda p: p["base"].update(path="out"), "base.path='out'", "leads out"),
    (lambda p: p["base"].update(path="a\0"), "base.path='a\\x00'", "is no path here"),
    (lambda p: p["base"].update(path="loop"), "base.path='loop'", "is no path here"),
    (lambda p: p["base"].update(path="x" * 300), "base.path='xxx", "name too long"),
    (lambda p: p.update(base={"local": "/" + "x" * 300}), "base.local='/xx", "name too long"),
    (lambda p: p["base"].update(revision=3), "base.revision=3", "must be null or"),
    (lambda p: p["base"].update(revision=""), "base.revision=''", "must be null or"),
    (lambda p: p["base"].update(revision="main"), "base.path='base'", "must be a hub id"),
    (lambda p: p["base"].update(path="../x/y", revision="main"), "base.path=", "must be a hub id"),
    (lambda p: p["base"].update(local="/tmp"), "base=", "give one of `path`, `local`"),
    (lambda p: p["base"].pop("path"), "base=", "give one of `path`, `local`"),
    (lambda p: p.update(base={"fetched": "x"}), "base.fetched='x'", "must be smollm2"),
    (lambda p: p.update(base={"fetched": ["x"]}), "base.fetched=['x']", "must be smollm2"),
    (lambda p: p["base"].update(fetched="smollm2-135m-instruct"), "base=", "give one of"),
    (lambda p: p.update(base={"local": "base"}), "base.local='base'", "absolute path"),
    (lambda p: p.update(base={"local": "/no/such"}), "base.local='/no/such'", "no such directory"),
    (lambda p: p.update(base={"local": "/", "revision": "a"}), "base.local='/'", "revision"),
    (lambda p: p["base"].update(sha256={"../x": "a"}), "base.sha256='../x'", "names of files"),
    (lambda p: p["base"].update(sha256={"x": "a"}), "base.sha256.x='a'", "64 hexadecimal"),
    (lambda p: p["base"].update(sha256=5), "base.sha256=5", "must be an object"),
    (lambda p: p.update(defaults={"strength": 99}), "defaults: strength=99", "from -1 to 10"),
    (lambda p: p.update(defaults={"strenght": 1}), "defaults: strenght=1", "known: strength"),
    (lambda p: p.update(defaults=0.5), "defaults=0.5", "must be an object"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "key", "words"), WRONG_FILES)
def test_a_wrong_file_is_refused_by_key_value_and_remedy(directory, change, key, words):
    (directory / "out").symlink_to("/")
    (directory / "loop").symlink_to("loop")
    file = directory / "pair.json"
    edit(file, change)
    with pytest.raises(ValueError) as refused:
        Pair.open(directory)
    message = str(refused.value)
    assert message.startswith(f"{file}: ") and key in message and words in message


def test_a_file_that_is_no_object_is_refused(directory):
    (directory / "pair.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"pair.json: the file=\[1\]: must be an object"):
        Pair.open(directory)


@pytest.mark.parametrize("text", ["", "{", "\xff", '{"format": 1, "format": 1}'])
def test_what_is_no_json_is_refused_by_file(directory, text):
    (directory / "pair.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"pair.json: not valid JSON"):
        Pair.open(directory)


def test_directories_outside_are_recorded_as_local(made, tmp_path):
    written = write_pair(tmp_path, name="far", base=made / "base", rlvr=made / "rlvr")
    stored = json.loads((tmp_path / "pair.json").read_text())
    assert stored["base"]["local"] == str(made / "base") and "path" not in stored["base"]
    assert written.base.directory == made / "base"
    assert not list(tmp_path.glob("*.part"))


def test_a_pair_that_cannot_be_one_is_not_written(made, directory, tmp_path):
    edit(directory / "base" / "config.json", lambda c: c.update(rms_norm_eps=1e-3))
    with pytest.raises(ValueError, match="rms_norm_eps"):
        write_pair(tmp_path / "new", name="x", base=directory / "base", rlvr=directory / "rlvr")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="neither a directory, nor a hub id"):
        write_pair(tmp_path / "new", name="x", base=tmp_path / "absent", rlvr=made / "rlvr")
    with pytest.raises(ValueError, match="use letters"):
        write_pair(tmp_path / "new", name="x@1", base=made / "base", rlvr=made / "rlvr")


def test_a_hub_checkpoint_is_pinned_to_its_commit(made, tmp_path, monkeypatch):
    commit = "2b1c" * 10
    snapshot = tmp_path / "snapshots" / commit
    shutil.copytree(made / "base", snapshot)
    asked = []

    def download(repository, *, revision, allow_patterns):
        asked.append((repository, revision))
        assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    pair = write_pair(tmp_path / "pair", name="hub", base="org/model", rlvr=made / "rlvr")
    assert (pair.base.hub, pair.base.revision) == ("org/model", commit)
    stored = json.loads((tmp_path / "pair" / "pair.json").read_text())["base"]
    assert (stored["path"], stored["revision"]) == ("org/model", commit)
    assert asked[0] == ("org/model", "main") and asked[-1] == ("org/model", commit)


@pytest.mark.parametrize(
    ("role", "name"),
    [("base", "model.safetensors"), ("rlvr", "config.json"), ("rlvr", "tokenizer.json")],
)
def test_a_file_changed_since_make_is_found(directory, role, name):
    file = directory / role / name
    file.write_bytes(file.read_bytes() + b" ")
    Pair.open(directory)
    part = "tokenizer" if name == "tokenizer.json" else role
    with pytest.raises(ValueError, match=rf"{part}/{name}: sha256 is [0-9a-f]{{64}}, recorded is"):
        Pair.open(directory, verify=True)


def test_a_missing_or_additional_weight_file_is_found(directory):
    shutil.copy(directory / "base" / "model.safetensors", directory / "base" / "more.safetensors")
    (directory / "rlvr" / "generation_config.json").unlink()
    with pytest.raises(ValueError) as refused:
        Pair.open(directory, verify=True)
    assert "base/more.safetensors: sha256 is " in str(refused.value)
    assert "recorded is nothing" in str(refused.value)
    assert "rlvr/generation_config.json: sha256 is that of no file" in str(refused.value)


def test_without_digests_there_is_nothing_to_verify(directory):
    edit(directory / "pair.json", lambda p: p["base"].pop("sha256"))
    Pair.open(directory)
    with pytest.raises(ValueError, match="base: no sha256 recorded"):
        Pair.open(directory, verify=True)


def make_adapter(directory):
    """Turn rlvr into an adapter on base."""
    from safetensors.torch import save_file
    from torch import zeros

    shutil.rmtree(directory / "rlvr")
    (directory / "rlvr").mkdir()
    (directory / "rlvr" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"lora": zeros(1)}, directory / "rlvr" / "adapter_model.safetensors")
    return write_pair(directory, name="low", base=directory / "base", rlvr=directory / "rlvr")


def test_an_adapter_takes_everything_but_weights_from_base(directory):
    pair = make_adapter(directory)
    assert pair.rlvr.kind == "adapter"
    assert set(pair.rlvr.sha256) == {"adapter_config.json", "adapter_model.safetensors"}
    assert pair.tokenizer_directory == pair.base.directory
    assert pair.stop_token_ids == (2,)


def test_an_adapter_is_opened_only_on_the_base_it_was_made_for(directory):
    make_adapter(directory)
    weights = directory / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"base/model\.safetensors: sha256 is"):
        Pair.open(directory)
    edit(directory / "pair.json", lambda p: p["base"].pop("sha256"))
    with pytest.raises(ValueError, match="base: no sha256 recorded"):
        Pair.open(directory)
