"""C++ compiled on first use: kept, whole, and its failures in plain words."""

import subprocess
import sys

import pytest
import torch

from rlvr_decode.kernels import delta_linear, native

runs_here = pytest.mark.skipif(
    not delta_linear.takes(torch.empty(2, 2), torch.cpu.get_capabilities()),
    reason="the operation's instructions are missing",
)
SOURCE = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
int64_t answer(const torch::stable::Tensor&) { return %d; }
STABLE_TORCH_LIBRARY(native_%d, m) { m.def("answer(Tensor x) -> int"); }
STABLE_TORCH_LIBRARY_IMPL(native_%d, CPU, m) { m.impl("answer", TORCH_BOX(&answer)); }
"""


@pytest.fixture
def source(tmp_path):
    def write(answer):
        path = tmp_path / "answer.cpp"
        path.write_text(SOURCE.replace("%d", str(answer)))
        return path

    return write


@runs_here
def test_a_source_is_compiled_once_and_again_when_it_changes(source, tmp_path, monkeypatch):
    first = native.load(source(41), tmp_path / "cache")
    assert torch.ops.native_41.answer(torch.empty(0)) == 41
    second = native.load(source(42), tmp_path / "cache")
    assert torch.ops.native_42.answer(torch.empty(0)) == 42
    assert first != second and {first, second} == set((tmp_path / "cache").iterdir())
    monkeypatch.setattr(native, "_compile", None)
    assert native.load(source(42), tmp_path / "cache") == second


@runs_here
def test_what_others_may_have_written_is_not_loaded(source, tmp_path):
    path, cache = source(46), tmp_path / "cache"
    for opened in (native.load(path, cache), cache):
        opened.chmod(0o777)
        with pytest.raises(native.BuildError, match="by others; remove it, or set XDG_CACHE_H"):
            native.load(path, cache)
        opened.chmod(0o700)


@runs_here
@pytest.mark.parametrize("compiler", ["g++ -O1", " "])
def test_the_environments_compiler_may_have_arguments(source, tmp_path, monkeypatch, compiler):
    ran = []
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(native, "_compile", lambda command, library: ran.append(command))
    with pytest.raises(FileNotFoundError):
        native.load(source(47), tmp_path / "cache")
    assert ("-O1" in ran[0]) == (compiler == "g++ -O1") and ran[0][0].endswith("/g++")


@runs_here
def test_a_source_that_does_not_compile_leaves_nothing(source, tmp_path):
    path = source(43)
    path.write_text(path.read_text() + "no C++")
    with pytest.raises(native.BuildError, match="error: .no. does not name a type"):
        native.load(path, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_no_compiler_is_named_with_the_remedy(source, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(native.BuildError, match=r"no-such-compiler .* install g\+\+ or set CXX"):
        native.load(source(44), tmp_path / "cache")


@runs_here
def test_two_processes_compile_at_once(source, tmp_path):
    path = source(45)
    script = (
        "import sys, torch; from pathlib import Path; from rlvr_decode.kernels import native;"
        "native.load(*map(Path, sys.argv[1:]));"
        "print(torch.ops.native_45.answer(torch.empty(0)))"
    )
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["45\n"] * 2
    assert len(list((tmp_path / "cache").iterdir())) == 1
