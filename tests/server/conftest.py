"""A real server process with the bundled pair, shared by the tests that talk to one."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest


class Running(NamedTuple):
    """A server process that answers at an address."""

    url: str
    process: subprocess.Popen
    log: Path


@contextmanager
def starting_server(directory, *flags):
    """A server of the bundled pair, just started; killed at the end, if it still runs."""
    log = directory / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "rlvr_decode", "serve", "tiny", "--port", str(port)]
    command += ["--enforce-eager", "--dtype", "float32", "--max-num-seqs", "16"]
    command += ["--kv-cache-memory-bytes", str(2**27), *flags]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    del environment["VLLM_CPU_KVCACHE_SPACE"]  # it would win
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=directory
        )
        try:
            yield Running(f"http://127.0.0.1:{port}", process, log)
        finally:
            process.kill()
            process.wait()


@contextmanager
def running_server(directory, *flags):
    """A server that is ready."""
    with starting_server(directory, *flags) as running:
        wait_for(lambda: "serving on" in running.log.read_text(), running.process, running.log)
        yield running


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of a running server; ended, and looked after, at the end of the session."""
    # With vLLM's own /inference routes.
    with running_server(tmp_path_factory.mktemp("server"), "--enable-scale-out") as running:
        yield running.url
        assert_ends_alone(running.process, running.log)


@pytest.fixture
def own_server(tmp_path):
    """A server that a test may ruin."""
    with running_server(tmp_path) as running:
        yield running


def wait_for(condition, process, log, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()[-5000:]
        assert time.monotonic() < end, log.read_text()[-5000:]
        time.sleep(0.2)


def assert_ends_alone(process, log):
    """SIGTERM ends the server and every process it started."""
    children = psutil.Process(process.pid).children(recursive=True)
    assert children, "the engine runs in a process of its own"
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, log.read_text()[-5000:]
    assert process.returncode == 0, log.read_text()[-5000:]
