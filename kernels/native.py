"""C++ for CPUs, compiled when it is first needed and kept for the next process.

PyTorch's stable ABI keeps the headers few: a compilation takes seconds. The compiler is the one
that torch.compile needs on a CPU anyway: $CXX, or g++.
"""

import hashlib
import os
import shlex
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

    Returns the library's path. Raises `BuildError` without a compiler, where it fails, and for a
    cache that others can write to; OSError where it cannot be written.
    """
    command = [*_compiler(), *FLAGS, *FLAGS_OF_X86, str(source)]
    for include in cpp_extension.include_paths():
        command += ["-isystem", include]
    for directory in cpp_extension.library_paths():
        command += ["-L", directory]
    command += ["-ltorch", "-ltorch_cpu", "-lc10"]
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    library = cache / f"{source.stem}-{_digest(source, command)}.so"
    if not library.exists():
        _compile(command, library)
    for path in (cache, library):
        _check_owner(path)
    torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    return library


def _compiler() -> list[str]:
    """The compiler and the arguments that $CXX gives it."""
    name, *arguments = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    found = shutil.which(name)
    if found is None:
        raise BuildError(f"no C++ compiler: {name} is not on PATH; install g++ or set CXX")
    return [found, *arguments]


def _digest(source: Path, command: list[str]) -> str:
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout
    sources = [source, *sorted(source.parent.glob("*.h"))]
    texts = [each.read_text(encoding="utf-8") for each in sources]
    parts = (*texts, *command, version, torch.__version__)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _check_owner(path: Path) -> None:
    """What is loaded runs with this process's rights."""
    status = path.stat()
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & 0o022:
        raise BuildError(
            f"{path} may have been written by others; remove it, or set XDG_CACHE_HOME to a "
            "directory of your own"
        )


def _compile(command: list[str], library: Path) -> None:
    # Whole or not at all: another process may be looking.
    with tempfile.TemporaryDirectory(dir=library.parent) as directory:
        made = Path(directory) / library.name
        run = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True)
        if run.returncode:
            raise BuildError(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
        made.chmod(0o700)
        made.replace(library)
