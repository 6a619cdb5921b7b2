"""What the server's engine lets into its queue."""

import pytest
from vllm.v1.engine.async_llm import AsyncLLM

from rlvr_decode.server.engine import Engine
from rlvr_decode.server.scores import ADMITTED


class Full(Exception):
    """What a full queue says."""


@pytest.fixture
def full_engine(monkeypatch):
    def check_admission(self, n=1, request_id=None):
        raise Full

    monkeypatch.setattr(AsyncLLM, "check_admission", check_admission)
    return Engine.__new__(Engine)


def test_the_trace_of_an_admitted_answer_enters_a_full_queue(full_engine):
    full_engine.check_admission(1, f"{ADMITTED}0")


@pytest.mark.parametrize("name", [None, "cmpl-0", "trace-0", "trace-" + "0" * 16 + "-0"])
def test_no_name_that_a_client_can_choose_enters_a_full_queue(full_engine, name):
    with pytest.raises(Full):
        full_engine.check_admission(1, name)
