"""C++ for CPUs, compiled when it is first needed and kept for the next process.

PyTorch's stable ABI keeps the headers few: a compilation takes seconds. The compiler is the one
that torch.compile needs on a CPU anyway: $CXX, or g++.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

FLAGS = ("-std=c++20", "-O3", "-fopenmp", "-fPIC", "-shared")
FLAGS_OF_X86 = ("-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16")


class BuildError(RuntimeError):
    """A source could not be compiled; the message has the compiler's own."""


def load(source: Path, cache: Path) -> Path:
    """Compile a source for this machine, unless `cache` has it, and load its operations.

    source  C++ that registers operations with PyTorch's stable ABI, for x86 with AVX-512; headers
            are looked for beside it.
    cache   a directory; it is made. Several processes may load into it at once.

    Returns the library's path. Raises `BuildError` without a compiler or where it fails, and
    OSError where the cache cannot be written.
    """
    command = [_compiler(), *FLAGS, *FLAGS_OF_X86, str(source)]
    for include in cpp_extension.include_paths():
        command += ["-isystem", include]
    for directory in cpp_extension.library_paths():
        command += ["-L", directory]
    command += ["-ltorch", "-ltorch_cpu", "-lc10"]
    library = cache / f"{source.stem}-{_digest(source, command)}.so"
    if not library.exists():
        _compile(command, library)
    torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    return library


def _compiler() -> str:
    name = os.environ.get("CXX", "g++")
    found = shutil.which(name)
    if found is None:
        raise BuildError(f"no C++ compiler: {name} is not on PATH; install g++ or set CXX")
    return found


def _digest(source: Path, command: list[str]) -> str:
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout
    sources = [source, *sorted(source.parent.glob("*.h"))]
    texts = [each.read_text(encoding="utf-8") for each in sources]
    parts = (*texts, *command, version, torch.__version__)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(command: list[str], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: another process may be looking.
    with tempfile.TemporaryDirectory(dir=library.parent) as directory:
        made = Path(directory) / library.name
        run = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True)
        if run.returncode:
            raise BuildError(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
        made.replace(library)
