"""A training run on disk that is started, killed at a moment, and compared with another."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkProcess, SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path

from rlvr_decode.__main__ import main
from rlvr_decode.training.run.metrics import MetricsLog

PLACE = "<place>"
TIME_OUT = 300.0  # seconds for what must end by itself


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A command to be killed; PLACE in its settings is the campaign's directory."""

    command: tuple[str, str]
    settings: list[str]
    processes: int = 1
    share: float = 1.0
    """Of the kills asked for."""

    @property
    def name(self) -> str:
        """Of the run's directory."""
        return "sft-tiny" if self.command[0] == "sft" else self.command[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """When to kill: so long after the run has its directory, or after its n-th write began."""

    delay: float
    write: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """What a kill hit: the last step told of, what was half written, who was left and how."""

    after: str
    writing: str
    left: float
    """Seconds until all processes had ended."""
    message: str = ""


class Run:
    """A run on disk, and the processes that work at it now."""

    def __init__(self, arm: Arm, out: Path) -> None:
        self.arm, self.out = arm, out
        self.directory = out / arm.name
        self.seconds_at_work = 0.0
        out.mkdir(parents=True)

    def start(self, kind: type[BaseProcess]) -> list[BaseProcess]:
        """All processes of the run; what one says is in a file of its own.

        kind  of process: SpawnProcess is an interpreter of its own, ForkProcess saves the imports.
        """
        settings = [each.replace(PLACE, str(self.out.parent.parent)) for each in self.arm.settings]
        arguments = [*self.arm.command, *settings, f"out={self.out}"]
        group = {"WORLD_SIZE": str(self.arm.processes), "MASTER_ADDR": "127.0.0.1"}
        group["MASTER_PORT"] = str(free_port())
        processes = []
        for rank in range(self.arm.processes):
            mine = group | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
            process = kind(target=work, args=(arguments, mine, self.said(rank)))
            process.start()
            processes.append(process)
        return processes

    def said(self, rank: int) -> Path:
        """The file of a process's standard error."""
        return self.out / f"stderr-{rank}"

    def finish(self) -> None:
        """Let the run end, in new interpreters; SystemExit if it fails."""
        processes = self.start(SpawnProcess)
        self.wait_for_lock(processes[0])
        started = time.monotonic()
        self.check(processes, {0})
        self.seconds_at_work = time.monotonic() - started

    def kill(self, moment: Moment, rank: int) -> Kill | None:
        """Start the run and kill one process of it; None if it was done before the moment came."""
        processes = self.start(ForkProcess)
        victim = processes[rank]
        self.wait_for_lock(processes[0])
        self.wait_for(moment, victim)
        victim.kill()
        killed = time.monotonic()
        victim.join()
        if victim.exitcode != -signal.SIGKILL:
            self.check(processes, {0})
            return None
        writing = ", ".join(sorted(self.scratch()))
        others = [process for process in processes if process is not victim]
        # After the last exchange, the death of one is nothing to the other.
        self.check(others, {0, 2})
        return Kill(
            after=self.progress(),
            writing=writing,
            left=time.monotonic() - killed,
            message=self.last_words(1 - rank).splitlines()[-1] if others else "",
        )

    def check(self, processes: Sequence[BaseProcess], expected: set[int]) -> None:
        """SystemExit if the processes do not end, and like that."""
        for process in processes:
            process.join(TIME_OUT)
        codes = [process.exitcode for process in processes]
        if not set(codes) <= expected:
            said = "\n".join(self.last_words(rank) for rank in range(self.arm.processes))
            raise SystemExit(f"{self.directory}: ended with {codes}:\n{said}")

    def wait_for_lock(self, process: BaseProcess) -> None:
        """Until the process owns the directory, or has ended."""
        mine = f"process {process.pid} "
        while process.is_alive():
            with suppress(FileNotFoundError):
                if (self.directory / "lock").read_text().startswith(mine):
                    return
            time.sleep(0.002)

    def wait_for(self, moment: Moment, process: BaseProcess) -> None:
        """Until the moment has come, or the process has ended."""
        seen: set[str] = set()
        writes = 0
        while writes < moment.write and process.is_alive():
            there = set(self.scratch())
            writes += len(there - seen)
            seen = there
            time.sleep(0.0005)
        end = time.monotonic() + moment.delay
        while time.monotonic() < end and process.is_alive():
            time.sleep(min(0.005, moment.delay))

    def scratch(self) -> Iterator[str]:
        """What is being written, or was when the run was killed."""
        for place in (".", "checkpoints", "pretrain", "pretrain/checkpoints"):
            with suppress(FileNotFoundError):
                for entry in os.scandir(self.directory / place):
                    if entry.name.endswith(".tmp"):
                        yield entry.name.removesuffix(".tmp")

    def progress(self) -> str:
        """How far the run has come."""
        for file, what in (("", "step"), ("pretrain", "pretraining step")):
            if lines := MetricsLog(self.directory / file / "metrics.jsonl").read():
                return f"{what} {lines[-1]['step']}"
        return "start"

    def last_words(self, rank: int) -> str:
        """The end of a process's standard error."""
        return self.said(rank).read_text(encoding="utf-8", errors="replace").strip()[-2000:]


def work(arguments: list[str], environment: dict[str, str], said: Path) -> None:
    """What a process of a run does; its standard error goes to a file."""
    os.environ.update(environment)
    with said.open("wb") as errors:
        os.dup2(errors.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(main(arguments))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def differences(whole: Path, run: Path) -> list[str]:
    """The files that only one of two runs has, or that are not equal to the last bit."""
    ours, theirs = contents(whole), contents(run)
    return sorted(name for name in ours.keys() | theirs if ours.get(name) != theirs.get(name))


def contents(directory: Path) -> dict[str, str]:
    """Each file of a run by a digest, aside from where it lies, whose it was and how fast."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_dir() or path.name == "lock":
            found[f"{path.relative_to(directory)}"] = ""
            continue
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            data = re.sub(rb'"tokens_per_second": [^,}]*', b"", data)
        if path.name == "config.json":
            data = data.replace(str(directory.parent).encode(), b"")
        found[f"{path.relative_to(directory)}"] = hashlib.sha256(data).hexdigest()
    return found
