"""The one command: its verbs, its words when something is missing, and `pair`."""

import json
import shutil
import subprocess
import sys

import pytest

from rlvr_decode import Extrapolation, __version__
from rlvr_decode.__main__ import main
from rlvr_decode.pair import Pair
from rlvr_decode.testing import make_checkpoints


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return make_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def test_version_and_usage_load_nothing_heavy():
    code = (
        "import sys; from rlvr_decode.__main__ import main; "
        "codes = [main([flag]) for flag in ('--version', '--help')] + [main([])]; "
        "assert codes == [0, 0, 0], codes; "
        "assert not {'vllm', 'torch', 'fastapi', 'transformers'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(f"rlvr-decode {__version__}\nusage: rlvr-decode VERB")


def test_a_missing_extra_is_named_with_the_remedy(monkeypatch, capsys):
    # None in sys.modules makes the import fail as it does where the package is absent.
    monkeypatch.delitem(sys.modules, "rlvr_decode.server.app", raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)
    for name in [name for name in sys.modules if name.startswith("vllm.")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["serve", "tiny"]) == 1
    assert "rlvr-decode serve needs vllm: pip install" in capsys.readouterr().err


def test_make_show_and_check(checkpoints, tmp_path, capsys):
    for path in checkpoints:
        shutil.copytree(path, tmp_path / path.name)
    base, rlvr = str(tmp_path / "base"), str(tmp_path / "rlvr")
    flags = ["-o", str(tmp_path), "--name", "mine", "--strength", "0.5"]
    assert main(["pair", "make", base, rlvr, *flags]) == 0
    printed = capsys.readouterr().out
    assert "rlvr-decode serve" in printed and "cannot be copied" not in printed
    assert Pair.open(tmp_path).defaults.strength == 0.5

    assert main(["pair", "check", str(tmp_path)]) == 0
    assert "mine: base and rlvr agree" in capsys.readouterr().out
    assert main(["pair", "show", str(tmp_path)]) == 0
    assert "strength=0.5" in capsys.readouterr().out
    assert main(["pair", "show", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "mine"


def test_make_says_when_a_pair_stays_on_this_machine(checkpoints, tmp_path, capsys):
    base, rlvr = map(str, checkpoints)
    assert main(["pair", "make", base, rlvr, "-o", str(tmp_path / "far")]) == 0
    assert "cannot be copied" in capsys.readouterr().out
    assert Pair.open(tmp_path / "far").name == "far"


def test_make_writes_a_gate_as_the_default(checkpoints, tmp_path):
    flags = ["-o", str(tmp_path / "gated"), "--strength", "0.1"]
    gate = ["--gate", "delta", "--threshold", "-0.3", "--primary", "base"]
    assert main(["pair", "make", *map(str, checkpoints), *flags, *gate]) == 0
    assert Pair.open(tmp_path / "gated").defaults == Extrapolation(
        strength=0.1, gate="delta", threshold=-0.3, primary="base"
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["make", "a", "b", "--gate", "delta"], "threshold"),
        (["make", "nowhere", "nowhere"], "neither a directory, nor a hub id"),
        (["check", "absent"], "no pair 'absent'"),
        (["show", "absent"], "no pair 'absent'"),
        (["make", "a", "b", "--strength", "much"], "invalid float value"),
        (["mend"], "invalid choice: 'mend'"),
    ],
)
def test_what_cannot_be_done_is_said(argv, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["pair", *argv])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_generate_refuses_a_strength_out_of_range(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", "tiny", "1+1", "--strength", "0", "99"])
    assert ended.value.code == 2
    assert "strength=99.0: must be from -1 to 10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--gate", "delta"], "threshold=None: gate delta needs a number from -100 to 100"),
        (["--threshold", "0.1"], "threshold=0.1: gate none compares with nothing"),
        (["--gate", "sometimes"], "invalid choice: 'sometimes'"),
    ],
)
def test_generate_refuses_half_a_gate(argv, words, capsys):
    with pytest.raises(SystemExit):
        main(["generate", "tiny", "1+1", *argv])
    assert words in capsys.readouterr().err
