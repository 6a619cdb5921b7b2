"""A small part of the campaign of hostile requests, always the same, against the tests' server."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_server.py"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/delta"])
def test_hostile_requests_are_answered_and_change_nothing(server, path):
    arguments = ["--server", server, "--examples", "3", "--share", "0.03", "--only", path]
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    cases, failures = done.stdout.split()[0], done.stdout.split()[2]
    assert int(cases) > 20 and failures == "0"
