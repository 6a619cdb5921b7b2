"""scaling.md: its tables are the model's, and the commands it shows are understood."""

import pytest
from scaling import PAGE, over_the_first, tables

from rlvr_decode.server.arguments import parse


def test_the_page_shows_what_the_model_says():
    page = PAGE.read_text(encoding="utf-8")
    computed = tables()
    for _ in range(6):  # memory, decode steps, prompts; the simulation takes too long here
        assert next(computed) in page


def test_what_does_not_fit_is_left_open():
    assert over_the_first([0.002, 0.003, None]) == ["2.0", "1.50", "–"]
    assert over_the_first([None, 0.003]) == ["–", "–"]


@pytest.mark.parametrize(
    "flags, wanted",
    [
        ("--tensor-parallel-size 4", {"tensor_parallel_size": 4}),
        (
            "--tensor-parallel-size 2 --data-parallel-size 4",
            {"tensor_parallel_size": 2, "data_parallel_size": 4},
        ),
        (
            "--data-parallel-size 4 --data-parallel-backend ray",
            {"data_parallel_size": 4, "data_parallel_backend": "ray"},
        ),
    ],
)
def test_the_commands_are_understood(flags, wanted):
    assert flags in PAGE.read_text(encoding="utf-8")
    args = vars(parse(["tiny", *flags.split()]).args)
    assert {name: args[name] for name in wanted} == wanted
