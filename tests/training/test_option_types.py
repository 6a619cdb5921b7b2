"""Options of tasks and objectives: of the annotated type, or refused by name."""

import inspect
import math

import pytest

from rlvr_decode.training.objectives import OBJECTIVES
from rlvr_decode.training.objectives.options import SHARED, option_types
from rlvr_decode.training.tasks.data import make_task


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("jsonl", {}, "task jsonl: path must be given"),
        ("jsonl", {"path": 5}, "task jsonl: path=5: must be text, not int"),
        ("jsonl", {"path": ["x"]}, r"task jsonl: path=\['x'\]: must be text, not list"),
        ("jsonl", {"path": "x", "workers": True}, "workers=True: must be a whole number, not bool"),
        ("csv", {"path": "x", "time_out": "5"}, "time_out='5': must be a number, not str"),
        ("csv", {"path": "x", "reward": 5}, "reward=5: must be text or a table or a list, not int"),
        ("jsonl", {"path": "x", "workers": 2**70}, "workers=1180.*: must be above 0, and at most"),
        ("jsonl", {"path": "x", "time_out": math.nan}, "time_out=nan: must be above 0"),
        ("jsonl", {"path": "x", "memory_gb": math.inf}, "memory_gb=inf: must be above 0"),
        ("reasoning_gym:chain_sum", {"tag": 1}, "tag=1: must be text, not int"),
        ("add3", {"size": 1}, "task add3: unknown size; known: none"),
    ],
)
def test_what_is_wrong_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_task(name, options)


NASTY = (True, -1, 2**70, 10**400, 0.5, math.nan, math.inf, "", "x", [], ["x"], [[1]], {"a": 1})


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_any_option_of_an_objective_is_taken_or_refused_by_name(objective):
    make = OBJECTIVES[objective]
    for name in sorted({*option_types(inspect.unwrap(make)), *SHARED}):
        for value in NASTY:
            try:
                make(**{name: value})
            except ValueError as error:
                assert str(error)
            else:
                assert isinstance(value, int | float), (name, value)
                assert not isinstance(value, float) or math.isfinite(value)
