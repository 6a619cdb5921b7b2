"""A real server process with the bundled pair, shared by the tests that talk to one."""

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of a running server; ended, and looked after, at the end of the session."""
    log = tmp_path_factory.mktemp("server") / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--port", str(port), "--enforce-eager", "--dtype", "float32", "--max-num-seqs", "16"]
    flags += ["--enable-scale-out"]  # vLLM's own /inference routes
    command = [sys.executable, "-m", "rlvr_decode", "serve", "tiny", *flags]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log.parent
        )
        try:
            wait_for(lambda: "serving on" in log.read_text(), process, log)
            yield f"http://127.0.0.1:{port}"
            assert_ends_alone(process, log)
        finally:
            process.kill()
            process.wait()


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
