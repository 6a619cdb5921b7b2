"""A process that runs rewards, so that it can be killed: JSON lines in, JSON lines out.

`judging.py` starts it and binds each reply to its request. The first line in names the rewards;
every other line is one response to judge. Standard output belongs to the replies alone: what a
reward prints goes to standard error.
"""

from __future__ import annotations

import json
import logging
import numbers
import os
import reprlib
import resource
import signal
import traceback
from contextlib import nullcontext
from typing import Any

from rlvr_decode.training.rewards.guard import guarded
from rlvr_decode.training.rewards.verifiable import REWARDS, Reward, find_reward

_WARM_UP = {"math_verify": ("$1$", "1")}


def main() -> None:
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    setup = json.loads(requests.readline())
    limit(setup["memory_bytes"])
    reply = {"id": setup["id"]}
    try:
        rewards = [(name, find_reward(name, options)) for name, options in setup["rewards"]]
        for name, reward in rewards:
            if name in _WARM_UP:
                reward(*_WARM_UP[name])
    except Exception:  # a user's module may fail to import in any way
        replies.write(json.dumps(reply | {"error": traceback.format_exc()}) + "\n")
        return
    replies.write(json.dumps(reply | {"value": len(rewards)}) + "\n")
    replies.flush()

    for line in requests:
        request = json.loads(line)
        # A backstop for when nobody is left to kill this process.
        signal.setitimer(signal.ITIMER_REAL, 2 * setup["time_out"])
        name, reward = rewards[request["reward"]]
        result = judged(name, reward, request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps({"id": request["id"]} | result) + "\n")
        replies.flush()


def limit(memory_bytes: int) -> None:
    """Bound this process' memory, and let a crash leave no core file."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def judged(name: str, reward: Reward, request: dict[str, Any]) -> dict[str, Any]:
    """What a reward says of one response: a value, an error, or something that is no number."""
    try:
        with guarded() if name in REWARDS else nullcontext():
            value: Any = reward(request["response"], request["answer"])
    except MemoryError:
        os._exit(1)  # whatever needed the memory may still hold it
    except Exception:  # a user's reward may fail in any way; the judge shows how
        return {"error": traceback.format_exc()}
    if value is None:
        return {"value": None}
    if not isinstance(value, numbers.Real):
        return {"bad": reprlib.repr(value)}
    return {"value": float(value)}


if __name__ == "__main__":
    main()
