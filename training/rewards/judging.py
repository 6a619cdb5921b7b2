"""Judging responses: a weighted sum of rewards, run where a bad one can be killed.

Cheap rewards run in this process. The others run in a few worker processes, one response at a
time: one that takes too long is killed, one that crashes is replaced, and either costs that
response its reward and nothing else. Only JSON crosses the pipes, and a worker whose reply is not
the one that was asked for is not believed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import secrets
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rlvr_decode.training.rewards.verifiable import CHEAP, REWARDS, find_reward

LOG = logging.getLogger(__name__)

_LONGEST_REPLY = 1 << 20
_DEAD = 16  # responses in a row without a verdict
COUNTS = ("reward_timeouts", "reward_crashes", "reward_errors", "reward_skipped")


class RewardError(RuntimeError):
    """A reward that cannot be used: its module does not import, or it always fails."""


class LostWorker(RuntimeError):
    """A worker that had to be killed, or died; the message is the metric that counts it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighted:
    """One term of the sum."""

    name: str
    """A key of `REWARDS`, or `module:function`."""
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)


def read_rewards(value: str | Mapping[str, Any] | Sequence[Any]) -> list[Weighted]:
    """A recipe's rewards: a name, {name, weight, and its options}, or a list of those."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, Mapping):
        options = dict(value)
        name, weight = options.pop("name", None), options.pop("weight", 1.0)
        if not isinstance(name, str):
            raise ValueError(f"reward {dict(value)!r}: needs a name")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"reward {name!r}: weight={weight!r} must be a number")
        if not math.isfinite(weight):
            raise ValueError(f"reward {name!r}: weight={weight!r} must be finite")
        if name in REWARDS or ":" not in name:
            find_reward(name, options)
        return [Weighted(name=name, weight=weight, options=options)]
    if not isinstance(value, Sequence) or not value:
        raise ValueError(f"reward={value!r}: give a name, a table, or a list of those")
    return [each for item in value for each in read_rewards(item)]


class Worker:
    """One process, asked one thing at a time."""

    def __init__(self, setup: Mapping[str, Any], start_time_out: float) -> None:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rlvr_decode.training.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # The same modules, the same verdicts; its own group, to be killed with its children.
            env=os.environ
            | {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout
        self._requests, self._replies = self._process.stdin, self._process.stdout
        os.set_blocking(self._requests.fileno(), False)
        os.set_blocking(self._replies.fileno(), False)
        reply = self.ask(setup, start_time_out)
        if "error" in reply:
            self.kill()
            raise RewardError(f"rewards cannot be loaded:\n{reply['error']}")

    def ask(self, request: Mapping[str, Any], time_out: float) -> dict[str, Any]:
        """The reply to one request; raises LostWorker, with the process gone, if there is none."""
        token = secrets.token_hex(8)
        line = json.dumps({**request, "id": token}).encode() + b"\n"
        try:
            received = self._exchange(line, time.monotonic() + time_out)
            reply = json.loads(received)
        except LostWorker:
            self.kill()
            raise
        except (OSError, ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict) or reply.get("id") != token:
            self.kill()
            raise LostWorker("reward_crashes")
        return reply

    def _exchange(self, line: bytes, deadline: float) -> bytes:
        """Send a line, as fast as it is read, and receive one."""
        pending, received = memoryview(line), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._replies, selectors.EVENT_READ)
            selector.register(self._requests, selectors.EVENT_WRITE)
            while not received.endswith(b"\n"):
                if (left := deadline - time.monotonic()) <= 0:
                    raise LostWorker("reward_timeouts")
                for key, _ in selector.select(left):
                    if key.fileobj is self._replies:
                        part = self._replies.read(1 << 16)
                        received += part or b""
                        if part == b"" or len(received) > _LONGEST_REPLY:
                            raise LostWorker("reward_crashes")
                    else:
                        pending = pending[self._requests.write(pending) or 0 :]
                        if not pending:
                            selector.unregister(self._requests)
        if pending:
            raise LostWorker("reward_crashes")
        return bytes(received)

    def is_quiet(self) -> bool:
        """Whether the process lives and has said nothing it was not asked."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._replies, selectors.EVENT_READ)
            return not selector.select(0)

    def kill(self) -> None:
        """End the process and every process it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._requests.close()
        self._replies.close()


class Judge:
    """Rewards, and the processes that run them; the processes start when first needed.

    workers         processes.
    time_out        seconds for one response and one reward; then it is killed and the reward is 0.
    start_time_out  seconds to import the rewards' modules.
    memory_gb       of each process; beyond it the process ends, and the reward is 0.
    """

    def __init__(
        self,
        rewards: Sequence[Weighted],
        *,
        workers: int = 2,
        time_out: float = 5.0,
        start_time_out: float = 120.0,
        memory_gb: float = 4.0,
    ) -> None:
        limits = {"workers": (workers, 1024), "time_out": (time_out, 1e6)}
        for name, (number, most) in (limits | {"memory_gb": (memory_gb, 1e6)}).items():
            if not 0 < number <= most:
                raise ValueError(f"{name}={number}: must be above 0, and at most {most:g}")
        self.rewards = list(rewards)
        self._time_out, self._start_time_out = time_out, start_time_out
        self._local = {
            k: find_reward(term.name, term.options)
            for k, term in enumerate(self.rewards)
            if term.name in CHEAP
        }
        self._setup = {
            "rewards": [(term.name, term.options) for term in self.rewards],
            "time_out": time_out,
            "memory_bytes": int(memory_gb * 2**30),
        }
        self._count = workers
        self._idle: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._shown: set[str] = set()
        self._lost: Counter[int] = Counter()

    def judge(self, responses: Sequence[str], answers: Sequence[str]) -> list[float | None]:
        """The weighted sum of the rewards of each response, in order.

        A reward of None is left out of its response's sum; where all are None, so is the sum.

        Raises ValueError if a reward returns something else than a finite number or None, and
        RewardError if one cannot be loaded, fails for every response, or no longer answers.
        """
        if len(responses) != len(answers):
            raise ValueError(f"{len(responses)} responses but {len(answers)} answers")
        sums: list[float | None] = [None] * len(responses)
        for k, term in enumerate(self.rewards):
            for at, value in enumerate(self._values(k, responses, answers)):
                if value is not None:
                    sums[at] = (sums[at] or 0.0) + term.weight * value
        self._counts["reward_skipped"] += sum(each is None for each in sums)
        return sums

    def take_counts(self) -> dict[str, float]:
        """Time-outs, crashes, exceptions and unjudged responses since the last call."""
        counts = {name: float(self._counts[name]) for name in COUNTS}
        self._counts.clear()
        return counts

    def close(self) -> None:
        """End the processes; judging again starts new ones."""
        for _ in range(self._count):
            if worker := self._idle.get():
                worker.kill()
            self._idle.put(None)

    def _values(
        self, k: int, responses: Sequence[str], answers: Sequence[str]
    ) -> list[float | None]:
        """One reward's verdicts."""
        pairs = list(zip(responses, answers, strict=True))
        if k in self._local:
            return [self._local[k](*pair) for pair in pairs]
        with ThreadPoolExecutor(self._count) as threads:
            replies = list(threads.map(lambda pair: self._reply(k, *pair), pairs))
        name = self.rewards[k].name
        errors = [reply["error"] for reply in replies if "error" in reply]
        if errors:
            if len(errors) == len(replies):
                raise RewardError(f"reward {name!r} failed for every response:\n{errors[0]}")
            self._counts["reward_errors"] += len(errors)
            if name not in self._shown:
                self._shown.add(name)
                LOG.warning("reward %r failed and counts as 0; shown once:\n%s", name, errors[0])
        return [self._number(name, reply) for reply in replies]

    def _number(self, name: str, reply: Mapping[str, Any]) -> float | None:
        if "error" in reply:
            return 0.0
        value = reply.get("value")
        if "bad" in reply or (value is not None and not _is_finite(value)):
            shown = reply.get("bad", value)
            raise ValueError(f"reward {name!r} returned {shown}: must be a finite number or None")
        return value

    def _reply(self, k: int, response: str, answer: str) -> dict[str, Any]:
        """Ask whichever worker is idle; without one's answer, the reward is 0."""
        worker = self._idle.get()
        try:
            if self._lost[k] >= _DEAD:
                raise RewardError(
                    f"reward {self.rewards[k].name!r} has not answered {_DEAD} responses in a row "
                    f"within {self._time_out:g} s each; does a server it calls still run?"
                )
            if worker is not None and not worker.is_quiet():
                worker.kill()
                worker = None
                self._add("reward_crashes")
            if worker is None:
                worker = self._start()
            request = {"reward": k, "response": response, "answer": answer}
            reply = worker.ask(request, self._time_out)
            self._lost[k] = 0
            return reply
        except LostWorker as lost:
            worker = None
            self._lost[k] += 1
            self._add(str(lost))
            return {"value": 0.0}
        finally:
            self._idle.put(worker)

    def _start(self) -> Worker:
        try:
            return Worker(self._setup, self._start_time_out)
        except LostWorker:
            names = ", ".join(term.name for term in self.rewards)
            raise RewardError(
                f"a reward process did not start in {self._start_time_out:g} s, or died: {names}"
            ) from None

    def _add(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1


def _is_finite(value: object) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)
