"""A reward that asks a server, and a server that dies in the middle of a run."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rlvr_decode.training.rewards.judging import RewardError
from rlvr_decode.training.trainer import train

REWARD_OF_A_USER = """
import http.client, pathlib

def score(response, answer):
    port = int(pathlib.Path(__file__).with_name("port").read_text())
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/", response.encode())
    return float(connection.getresponse().read())
"""
ROWS = [{"prompt": "say " * count, "answer": ""} for count in (1, 2, 3)]


class Scores(HTTPServer):
    """Scores a response by its share of digits, and hangs up on all but the first `lives`."""

    def __init__(self, lives):
        self.lives = lives
        super().__init__(("127.0.0.1", 0), Score)


class Score(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.lives -= 1
        if self.server.lives < 0:
            return
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        share = sum(character.isdigit() for character in text) / max(len(text), 1)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(share).encode())

    def log_message(self, *_):
        pass


@contextmanager
def serving(directory, lives):
    """The server, at the port that the reward finds."""
    with Scores(lives) as server:
        (directory / "port").write_text(str(server.server_port))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def metrics_of(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
    return [{**line, "tokens_per_second": 0} for line in lines]


def test_a_server_that_dies_ends_the_run_by_name_and_it_goes_on_later(
    micro_base, tmp_path, monkeypatch
):
    """Twelve responses a step: the third step loses seven, the fourth all, and the run ends."""
    (tmp_path / "served_rewards.py").write_text(REWARD_OF_A_USER)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {
        "name": "served",
        "rollout": {"prompts": 3, "group": 4, "max_new_tokens": 6},
        "optim": {"steps": 5, "lr": 1e-2, "warmup": 0},
        "checkpoint": {"every": 1},
        "log": {"curves": False},
        "threads": 1,
        "out": str(tmp_path),
    }

    def run():
        return train(micro_base, "served_rewards:score", ROWS, **options)

    message = r"'served_rewards:score' failed for every response:(.|\n)*RemoteDisconnected"
    with serving(tmp_path, lives=2 * 12 + 5), pytest.raises(RewardError, match=message):
        run()
    told = metrics_of(tmp_path / "served")
    assert [line.get("reward_errors") for line in told] == [None, 0, 0, 7]
    with serving(tmp_path, lives=2 * 12):
        pair = run()
    again = metrics_of(pair.parent)
    assert again[:4] == told
    assert [line["reward_errors"] for line in again[4:]] == [0, 0]
