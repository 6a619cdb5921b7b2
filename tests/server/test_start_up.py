"""Signals end a server that is still starting, whatever its engine is at."""

import signal
import time

import psutil
import pytest

from tests.server.conftest import starting_server, wait_for


@pytest.mark.parametrize("more", [0, 8])
def test_a_signal_ends_the_start_up_and_every_process_and_more_of_them_do_no_harm(tmp_path, more):
    with starting_server(tmp_path) as (_, process, log):
        wait_for(lambda: "(EngineCore" in log.read_text(), process, log)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children, "the engine runs in a process of its own"
        process.terminate()
        for _ in range(more):
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
        status = process.wait(timeout=60)
        _, alive = psutil.wait_procs(children, timeout=10)
        for child in alive:
            child.kill()
        assert status == 130, log.read_text()[-5000:]
        assert not alive, log.read_text()[-5000:]
        assert "serving on" not in log.read_text()
