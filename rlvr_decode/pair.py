"""A pair: two checkpoints of one model, base and rlvr, and how to open, check and write it.

Its file is `pair.json` (`pair_file.py`); what must agree between its two checkpoints is in
`pair_check.py`. Weights are read by whoever serves or trains, never here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from rlvr_decode import fetched
from rlvr_decode.pair_check import disagreements, engine_stops, stop_token_ids
from rlvr_decode.pair_file import FORMAT, HUB_ID, NAME, parse
from rlvr_decode.params import Extrapolation
from rlvr_decode.places import cache_directory

FILE = "pair.json"

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*config.json")
TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One of the two models: a directory of this machine, a repository of the hub, or a package.

    Of `directory`, `hub` and `fetched` one is given.

    kind       "full" weights, or an "adapter" (PEFT's format) on the base weights.
    directory  an absolute directory.
    hub        "org/name" with its `revision`.
    fetched    a key of `fetched.CHECKPOINTS`.
    sha256     digest by file name, of weights and configs (`pair make` records them).
    """

    kind: str = "full"
    directory: Path | None = None
    hub: str | None = None
    revision: str | None = None
    fetched: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)

    def fetch(self) -> Path:
        """The directory that holds the files, downloaded first if it is elsewhere."""
        if self.directory is not None:
            return self.directory
        if self.fetched is not None:
            return fetched.fetch(self.fetched)
        from huggingface_hub import snapshot_download

        assert self.hub is not None
        wanted = [*WEIGHT_FILES, *TOKENIZER_FILES]
        return Path(
            snapshot_download(self.hub, revision=self.revision, allow_patterns=wanted)
        ).resolve()

    def __str__(self) -> str:
        if self.fetched is not None:
            return f"{self.fetched} (of {fetched.CHECKPOINTS[self.fetched]})"
        return str(self.directory) if self.hub is None else f"{self.hub}@{self.revision}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Base and rlvr, the settings a request gets when it names none, and where they came from."""

    name: str
    directory: Path
    base: Checkpoint
    rlvr: Checkpoint
    tokenizer: Mapping[str, str] = field(default_factory=dict)
    """sha256 of the files of the tokenizer both models share, by file name."""
    defaults: Extrapolation = field(default_factory=Extrapolation)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, source: str | Path, *, verify: bool = False) -> Self:
        """The pair of that name or path, after checking that its two models agree.

        source  a bundled or fetched pair's name, a directory with a `pair.json`, or that file.
        verify  also hash every file that `pair make` recorded.

        Raises ValueError that lists every disagreement, each with both values.
        """
        pair = cls.read(source)
        pair.check(verify=verify)
        return pair

    @classmethod
    def read(cls, source: str | Path) -> Self:
        """The pair as its file describes it, with nothing else opened or compared."""
        values = parse(locate(source))
        base, rlvr = (Checkpoint(**values.pop(role)) for role in ("base", "rlvr"))
        return cls(base=base, rlvr=rlvr, **values)

    def check(self, *, verify: bool = False) -> None:
        """Compare everything that can make two models disagree without an error."""
        found = disagreements(self.base.fetch(), self.rlvr.fetch(), kind=self.rlvr.kind)
        if missing := set(self.stop_token_ids) - set(engine_stops(self.generation_config)):
            found.append(
                f"generation_config.json: would not stop at tokens {sorted(missing)}, which end "
                "a sequence for one of the models; `pair make` writes one that does"
            )
        # A low-rank delta fits any base of the same shape: only the weights tell them apart.
        if verify or self.rlvr.kind == "adapter":
            found += _changed("base", self.base.fetch(), self.base.sha256)
        if verify:
            found += _changed("rlvr", self.rlvr.fetch(), self.rlvr.sha256)
            found += _changed("tokenizer", self.tokenizer_directory, self.tokenizer)
        _refuse(self.name, found)

    @property
    def tokenizer_directory(self) -> Path:
        """Where the shared tokenizer and configs are: rlvr's, or the base's under an adapter."""
        return (self.rlvr if self.rlvr.kind == "full" else self.base).fetch()

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a sequence for either model, ascending."""
        return stop_token_ids(self.base.fetch(), self.tokenizer_directory)

    @property
    def generation_config(self) -> Path:
        """The directory whose generation config stops for both models.

        That is rlvr's own (the base's under an adapter) where it does; otherwise the pair's,
        where `write_pair` has put a copy with the stops of both.
        """
        served = self.tokenizer_directory
        missing = set(self.stop_token_ids) - set(engine_stops(served))
        return self.directory if missing else served


def locate(source: str | Path) -> Path:
    """The `pair.json` of a pair's name, directory or file; a name wins over a directory."""
    text = str(source)
    folders = [Path(__file__).parent / "pairs", cache_directory("pairs")]
    named = [folder / text / FILE for folder in folders if NAME.fullmatch(text)]
    path = Path(source).expanduser()
    for file in [*named, path / FILE, path]:
        if file.is_file():
            return file.resolve()
    known = sorted({file.parent.name for folder in folders for file in folder.glob(f"*/{FILE}")})
    raise ValueError(
        f"no pair {text!r}: it is neither a directory with a {FILE} nor one of "
        f"{', '.join(known) or '(none bundled)'}; `rlvr-decode pair make BASE RLVR` makes one"
    )


def write_pair(
    directory: str | Path,
    *,
    name: str,
    base: str | Path,
    rlvr: str | Path,
    defaults: Extrapolation | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Pair:
    """Write `directory/pair.json` for two checkpoints that agree, and hash their files.

    base, rlvr  a directory, a key of `fetched.CHECKPOINTS`, or a hub repository as "org/name" or
                "org/name@revision" (the commit it stands for is recorded). An rlvr directory with
                an `adapter_config.json` is an adapter on base. A directory outside
                `directory` is recorded as `local`.

    Raises ValueError when the two cannot be a pair; then nothing is written.
    """
    directory = Path(directory).resolve()
    if not NAME.fullmatch(name):
        raise ValueError(f"name {name!r}: use letters, digits, '.', '_' and '-'")
    made = Pair(
        name=name,
        directory=directory,
        base=_hashed(base),
        rlvr=_hashed(rlvr),
        defaults=defaults or Extrapolation(),
        provenance=dict(provenance or {}),
    )
    _refuse(name, disagreements(made.base.fetch(), made.rlvr.fetch(), kind=made.rlvr.kind))
    tokenizer = digests(made.tokenizer_directory, TOKENIZER_FILES)
    values = {
        "format": FORMAT,
        "name": name,
        "base": _written(made.base, directory),
        "rlvr": {"kind": made.rlvr.kind} | _written(made.rlvr, directory),
        "tokenizer": {"sha256": tokenizer},
        "defaults": asdict(made.defaults),
        "provenance": made.provenance,
    }
    directory.mkdir(parents=True, exist_ok=True)
    if made.generation_config == directory:
        own = made.tokenizer_directory / "generation_config.json"
        generation = json.loads(own.read_bytes()) if own.is_file() else {}
        stops = {"eos_token_id": list(made.stop_token_ids)}
        _write_json(directory / own.name, generation | stops)
    _write_json(directory / FILE, values)
    return Pair.open(directory)


def _write_json(file: Path, values: dict[str, Any]) -> None:
    """Write a file that is there whole or not at all."""
    unfinished = file.with_name(file.name + ".part")
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(file)


def digests(directory: Path, patterns: Iterable[str]) -> dict[str, str]:
    """sha256 by name of the files of a directory that match any of the patterns."""
    found = {file for pattern in patterns for file in directory.glob(pattern) if file.is_file()}
    result = {}
    for file in sorted(found):
        with file.open("rb") as opened:
            result[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return result


def _hashed(source: str | Path) -> Checkpoint:
    path = Path(source).expanduser()
    if path.is_dir():
        place: dict[str, Any] = {"directory": path.resolve()}
        files = path
    elif source in fetched.CHECKPOINTS:
        place = {"fetched": source}
        files = fetched.fetch(str(source))
    elif isinstance(source, str) and HUB_ID.fullmatch(source.partition("@")[0]):
        hub, _, revision = source.partition("@")
        files = Checkpoint(hub=hub, revision=revision or "main").fetch()
        # The hub's cache keeps one folder per commit, named by it.
        place = {"hub": hub, "revision": files.name}
    else:
        known = ", ".join(fetched.CHECKPOINTS)
        raise ValueError(
            f"checkpoint {str(source)!r} is neither a directory, nor a hub id org/name, nor one of "
            f"{known}"
        )
    kind = "adapter" if (files / "adapter_config.json").is_file() else "full"
    weights = [pattern for pattern in WEIGHT_FILES if pattern != "*config.json"]
    configs = ["config.json", "generation_config.json", "adapter_config.json"]
    return Checkpoint(kind=kind, sha256=digests(files, weights + configs), **place)


def _written(checkpoint: Checkpoint, directory: Path) -> dict[str, Any]:
    if checkpoint.fetched is not None:
        place: dict[str, Any] = {"fetched": checkpoint.fetched}
    elif checkpoint.directory is None:
        place = {"path": checkpoint.hub, "revision": checkpoint.revision}
    elif checkpoint.directory.is_relative_to(directory):
        inside = checkpoint.directory.relative_to(directory).as_posix()
        place = {"path": inside, "revision": None}
    else:
        place = {"local": str(checkpoint.directory)}
    return place | {"sha256": dict(checkpoint.sha256)}


def _refuse(name: str, found: list[str]) -> None:
    if found:
        raise ValueError(f"{name!r} is no pair that can be served:\n  " + "\n  ".join(found))


def _changed(role: str, directory: Path, recorded: Mapping[str, str]) -> list[str]:
    """What differs between the files of a directory and their recorded digests."""
    if not recorded:
        return [f"{role}: no sha256 recorded, so nothing to verify; make the pair again"]
    # vLLM reads every weight file of a directory, so one more than recorded counts too.
    weights = () if role == "tokenizer" else directory.glob("*.safetensors")
    present = {file.name for file in weights} | recorded.keys()
    actual = digests(directory, sorted(present))
    return [
        f"{role}/{name}: sha256 is {actual.get(name, 'that of no file')}, "
        f"recorded is {recorded.get(name, 'nothing')}"
        for name in sorted(present)
        if actual.get(name) != recorded.get(name)
    ]
