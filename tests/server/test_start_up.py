"""Signals end a server that is still starting, whatever its engine is at."""

import signal
import time

import psutil

from tests.server.conftest import starting_server, wait_for


def test_a_signal_ends_the_start_up_and_an_impatient_second_changes_nothing(tmp_path):
    with starting_server(tmp_path) as (_, process, log):
        wait_for(lambda: "(EngineCore" in log.read_text(), process, log)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children, "the engine runs in a process of its own"
        process.terminate()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, log.read_text()[-5000:]
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive, log.read_text()[-5000:]
        assert "serving on" not in log.read_text()
