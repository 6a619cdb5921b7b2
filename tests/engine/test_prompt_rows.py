"""Whose rows a runner asks for, and the way of values to the front end, without an engine."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlvr_decode.engine.prompt_rows import Piece, Prompt, PromptRows, rows_of
from rlvr_decode.engine.prompt_scores import EXTRA_ARG, Scoring
from rlvr_decode.engine.side_channel import SideChannel, SideChannelExtension, channel_of

CPU = torch.device("cpu")


def params(key):
    return SimpleNamespace(extra_args={EXTRA_ARG: {"key": key}})


def channel(*keys):
    made = SideChannel()
    for key in keys:
        made.open(key)
    return made


def spans(pieces):
    return [(p.prompt.scoring.key, p.begin, p.end, p.start) for p in pieces]


def test_rows_of_a_cut_call_are_those_inside_it():
    piece = Piece(Prompt(Scoring(key="a"), tokens=range(100)), begin=10, end=40, start=50)
    assert piece.within(0, 20) == piece._replace(begin=10, end=20, start=50)
    assert piece.within(20, 20) == piece._replace(begin=0, end=20, start=60)
    assert piece.within(40, 20) is None


def test_the_last_token_of_a_prompt_predicts_none_of_it():
    piece = Piece(Prompt(Scoring(key="a"), tokens=range(8)), begin=0, end=8, start=0)
    assert piece.within(0, 8).end == 7
    assert piece._replace(begin=0, end=1, start=7).within(0, 1) is None


def v2_batch(slots, starts, computed):
    return SimpleNamespace(
        idx_mapping_np=np.array(slots),
        query_start_loc_np=np.array(starts),
        num_computed_prefill_tokens_np=np.array(computed),
    )


def test_v2_asks_for_all_rows_in_order():
    rows = PromptRows(channel("a", "b"))
    rows.admit(0, params("a"), range(10))
    rows.admit(1, params("nobody"), range(10))
    rows.admit(2, params("b"), range(30))
    # a: its tokens 4 to 8; a plain one; b: its tokens 0 to 19, cut by the second call.
    rows.arm(v2_batch([0, 1, 2], [0, 5, 15, 35], [4, 0, 0]))
    rows.begin()
    first, second, third = rows.take(20), rows.take(15), rows.take(3)
    assert spans(first) == [("a", 0, 5, 4), ("b", 15, 20, 0)]
    assert spans(second) == [("b", 0, 15, 5)]
    assert third == []
    assert rows_of(first, CPU).tolist() == [0, 1, 2, 3, 4, 15, 16, 17, 18, 19]


def test_a_slot_keeps_nothing_of_its_last_request():
    rows = PromptRows(channel("a"))
    rows.admit(0, params("a"), range(10))
    rows.admit(0, SimpleNamespace(extra_args=None), range(10))
    rows.arm(v2_batch([0], [0, 10], [0]))
    assert rows.take(10) == []


def v1_runner(*requests):
    """Requests (key, tokens, computed, whether in the batch) in the order of the runner's table."""
    return SimpleNamespace(
        num_prompt_logprobs={key: 0 for key, *_ in requests},
        requests={
            key: SimpleNamespace(
                prompt_token_ids=range(tokens), num_computed_tokens=computed,
                sampling_params=params(key),
            )
            for key, tokens, computed, _ in requests
        },
        input_batch=SimpleNamespace(req_id_to_index={key: 0 for key, *_, here in requests if here}),
    )  # fmt: skip


def test_v1_asks_request_by_request_in_the_order_of_its_table():
    asked = channel("a", "c", "d", "e")
    asked.runner = v1_runner(
        ("a", 10, 4, True), ("plain", 9, 0, True), ("c", 9, 0, False), ("d", 9, 8, True),
        ("e", 30, 16, True),
    )  # fmt: skip
    rows = PromptRows(asked)
    for _ in range(2):  # of two steps
        rows.begin()
        assert spans(rows.take(5)) == [("a", 0, 5, 4)]
        assert rows.take(8) == []
        # c waits for its turn, and of d nothing is left to predict.
        assert spans(rows.take(7)) == [("e", 0, 7, 16)]
        assert rows.take(1) == []


def test_v1_knows_no_runner_before_somebody_asked():
    assert PromptRows(SideChannel()).take(5) == []


def test_values_come_back_in_order_and_once():
    box = channel("a")
    box.put("a", {"x": torch.tensor([1.5]), "y": torch.tensor([[1, 2]])})
    box.put("a", {"x": torch.tensor([2.5, 3.5]), "y": torch.tensor([[3, 4], [5, 6]])})
    box.put("closed", {"x": torch.tensor([9.0])})
    assert box.take("a") == {"x": [1.5, 2.5, 3.5], "y": [[1, 2], [3, 4], [5, 6]]}
    assert box.take("a") == {} == box.take("closed")
    assert not box.is_open("a")


def test_worker_and_model_meet_in_the_channel_of_their_engine():
    class Config:
        pass

    config, other = Config(), Config()
    worker = SideChannelExtension()
    worker.vllm_config, worker.model_runner = config, "runner"
    worker.open_side_channel("a")
    channel_of(config).put("a", {"x": torch.tensor([1.0])})
    channel_of(other).put("a", {"x": torch.tensor([2.0])})
    assert channel_of(config).runner == "runner"
    assert worker.take_side_channel("a") == {"x": [1.0]}


@pytest.mark.parametrize("hostile", ["text", 3, [], {}, {"key": ["a"]}, {"key": "b", "top": "x"}])
def test_what_a_client_writes_into_the_mark_is_nobodys_prompt(hostile):
    rows = PromptRows(channel("a"))
    rows.admit(0, SimpleNamespace(extra_args={EXTRA_ARG: hostile}), range(4))
    rows.arm(v2_batch([0], [0, 4], [0]))
    assert rows.take(4) == []
