"""The hand-over of strengths from the runner to the model, without an engine."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm import SamplingParams

from rlvr_decode import Extrapolation
from rlvr_decode.engine.rows import SettingsTable, Step, step_of
from rlvr_decode.engine.side_channel import SideChannel

CPU = torch.device("cpu")


def params(strength=0.0, plausibility=0.0, prompt_logprobs=None, repetition_penalty=1.0):
    extra_args = Extrapolation(strength=strength, plausibility=plausibility).to_extra_args()
    return SimpleNamespace(
        extra_args=extra_args,
        prompt_logprobs=prompt_logprobs,
        repetition_penalty=repetition_penalty,
    )


def nowhere():
    raise AssertionError("positions matter to gated rows alone")


def table(*strengths):
    made = SettingsTable(8, CPU, SideChannel())
    for index, strength in enumerate(strengths):
        made.write(index, params(strength, plausibility=strength / 10 if strength > 0 else 0))
    return made


def test_rows_follow_the_given_indices():
    rows = table(0, 1, 2).rows(np.array([2, 0, 2, 1]), nowhere)
    assert rows.strength_N.tolist() == [2, 0, 2, 1]
    assert rows.plausibility_N.tolist() == pytest.approx([0.2, 0, 0.2, 0.1])
    assert rows.extrapolating


def test_rows_of_strength_zero_do_not_extrapolate():
    assert not table(0, 0, 3).rows(np.array([0, 1]), nowhere).extrapolating


def test_a_reused_place_keeps_nothing_of_its_last_request():
    made = table(3)
    made.write(0, SamplingParams())
    rows = made.rows(np.array([0]), nowhere)
    assert rows.strength_N.item() == rows.plausibility_N.item() == 0


@pytest.mark.parametrize(
    "asked, linear",
    [
        (params(0, plausibility=0.1), True),
        (params(2), True),
        (params(-1, plausibility=0.1), True),  # nothing is cut between the models
        (params(2, plausibility=0.1), False),
        (params(2, repetition_penalty=1.1), False),
    ],
)
def test_rows_are_linear_if_each_is(asked, linear):
    made = table(0)
    made.write(1, asked)
    assert made.rows(np.array([0, 1, 1]), nowhere).linear is linear
    assert made.rows(np.array([0]), nowhere).linear


def test_swapping_exchanges_whole_requests():
    made = table(1, 2)
    made.write(0, params(0, prompt_logprobs=1))
    made.swap(0, 1)
    assert made.rows(np.array([0, 1]), nowhere).strength_N.tolist() == [2, 0]
    assert not made.any_prompt_logprobs(np.array([0]))
    assert made.any_prompt_logprobs(np.array([1]))


def test_rows_are_made_again_whenever_a_request_or_a_setting_changes():
    made, both = table(1, 2), np.array([0, 1])
    first = made.rows(both, nowhere)
    assert made.rows(both.copy(), nowhere) is first
    assert made.rows(both[::-1].copy(), nowhere).strength_N.tolist() == [2, 1]
    assert made.rows(both, nowhere).strength_N.tolist() == [1, 2]
    made.swap(0, 1)
    assert made.rows(both, nowhere).strength_N.tolist() == [2, 1]
    made.write(1, params(3))
    assert made.rows(both, nowhere).strength_N.tolist() == [2, 3]
    made.clear(0)
    assert made.rows(both, nowhere).strength_N.tolist() == [0, 3]


def test_a_gated_request_has_new_rows_at_every_step():
    made = SettingsTable(2, CPU, SideChannel())
    asked = Extrapolation(strength=1, gate="delta", threshold=0.1)
    made.write(0, asked.sampling_params(temperature=1.0))
    for position in (3, 4):
        rows = made.rows(np.array([0]), lambda at=position: torch.tensor([at]))
        assert rows.gated.positions_G.tolist() == [position]


def test_profiling_before_the_first_request_computes_both_heads():
    rows = Step().take(3, CPU)
    assert rows.extrapolating and rows.gated.rows_G.tolist() == [0, 1, 2]


def test_armed_rows_are_taken_once():
    step = Step()
    step.arm(table(1).rows(np.array([0]), nowhere), prompt_logprobs=False)
    assert step.take(1, CPU).strength_N.tolist() == [1]
    with pytest.raises(RuntimeError, match="no strengths were set"):
        step.take(1, CPU)


def test_another_number_of_rows_is_never_sampled():
    step = Step()
    step.arm(table(1, 2).rows(np.array([0, 1]), nowhere), prompt_logprobs=False)
    with pytest.raises(RuntimeError, match="3 rows .* were set for 2"):
        step.take(3, CPU)


def test_only_requests_that_score_their_prompt_may_call_again():
    step = Step()
    step.arm(table(0).rows(np.array([0]), nowhere), prompt_logprobs=True)
    step.take(1, CPU)
    assert step.take(17, CPU) is None


def test_an_engine_has_one_step_and_engines_do_not_share_it():
    class Config:
        pass

    first, second = Config(), Config()
    assert step_of(first) is step_of(first) is not step_of(second)
