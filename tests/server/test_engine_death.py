"""kill -9 of the engine's process: the server says so on /health, and ends."""

import signal
import threading
import time

import httpx
import psutil


def engine_of(process):
    """The process of the engine: the child that has the model, so the largest."""
    children = psutil.Process(process.pid).children(recursive=True)
    return max(children, key=lambda child: child.memory_info().rss)


def test_a_killed_engine_is_reported_and_ends_the_server(own_server):
    url, process, log = own_server
    assert httpx.get(f"{url}/health").status_code == 200
    body = {"model": "tiny", "prompt": "1+1=", "max_tokens": 240, "ignore_eos": True}
    waiting = []

    def wait(stream):
        try:
            with httpx.Client(timeout=30) as client:
                client.post(f"{url}/v1/completions", json=body | {"stream": stream}).read()
        except httpx.TransportError as error:
            assert not isinstance(error, httpx.TimeoutException)
        waiting.append(stream)

    threads = [threading.Thread(target=wait, args=(i % 2 == 0,)) for i in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    # Not all of the children are the engine, but without it the others are nothing.
    engine_of(process).send_signal(signal.SIGKILL)
    killed, statuses = time.monotonic(), []
    while process.poll() is None and time.monotonic() < killed + 30:
        try:
            statuses.append(httpx.get(f"{url}/health").status_code)
        except httpx.TransportError:
            break
        time.sleep(0.05)
    assert 503 in statuses and statuses[-1] == 503, statuses
    assert process.wait(timeout=30) == 1, log.read_text()[-3000:]
    for thread in threads:
        thread.join(timeout=5)
    assert len(waiting) == 8, "a client still waits"
    assert "the engine died" in log.read_text()
