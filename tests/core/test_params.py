"""The settings of a request: what is permitted, what is inherited, and how they travel."""

import math

import pytest

from rlvr_decode import Extrapolation, ops
from rlvr_decode.params import GATES, PRIMARIES, THRESHOLD_RANGES, SettingError

GATED = Extrapolation(strength=0.1, gate="delta", threshold=-0.3, primary="base")


def test_the_words_are_those_of_the_kernels():
    assert set(GATES) == set(ops.GATES)
    assert set(PRIMARIES) == set(ops.PRIMARIES)


@pytest.mark.parametrize("gate", GATES)
def test_settings_survive_the_way_through_vllm(gate):
    threshold = {"threshold": THRESHOLD_RANGES[gate][1]} if gate in THRESHOLD_RANGES else {}
    for primary in ["rlvr"] if gate == "none" else PRIMARIES:
        settings = Extrapolation(
            strength=-0.5, plausibility=0.1, gate=gate, primary=primary, **threshold
        )
        assert Extrapolation.from_extra_args(settings.to_extra_args()) == settings


def test_the_header_names_what_applies():
    assert str(Extrapolation(strength=0.5)) == "strength=0.5; plausibility=0; gate=none"
    assert str(Extrapolation(gate="all")) == "strength=0; plausibility=0; gate=all; primary=rlvr"
    expected = "strength=0.1; plausibility=0; gate=delta; threshold=-0.3; primary=base"
    assert str(GATED) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": "delta"}, "threshold=None: gate delta needs a number from -100 to 100"),
        ({"gate": "jsd"}, "threshold=None: gate jsd needs a number from 0 to 0.693147"),
        ({"gate": "none", "threshold": 0.1}, "threshold=0.1: gate none compares with nothing"),
        ({"gate": "all", "threshold": 0}, "threshold=0: gate all compares with nothing"),
        ({"gate": "kl", "threshold": -0.1}, "threshold=-0.1: must be from 0 to 100"),
        ({"gate": "jsd", "threshold": 0.7}, "threshold=0.7: must be from 0 to 0.693147"),
        ({"gate": "random", "threshold": 1.1}, "threshold=1.1: must be from 0 to 1"),
        ({"gate": "delta", "threshold": math.nan}, "threshold=nan: must be from"),
        ({"gate": "delta", "threshold": -math.inf}, "threshold=-inf: must be from"),
        ({"gate": "delta", "threshold": True}, "threshold=True: must be a number"),
        ({"gate": "delta", "threshold": "0"}, "threshold='0': must be a number"),
        ({"gate": "none", "threshold": "0"}, "threshold='0': must be a number"),
        ({"gate": "Delta", "threshold": 0}, "gate='Delta': must be one of none, all, delta"),
        ({"gate": None}, "gate=None: must be one of none"),
        ({"primary": "base"}, "primary='base': gate none draws once; leave it out"),
        ({"gate": "all", "primary": "Base"}, "primary='Base': must be one of rlvr, base"),
        ({"gate": "all", "primary": ["base"]}, "primary=['base']: must be one of rlvr, base"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(settings, message):
    with pytest.raises(SettingError) as caught:
        Extrapolation(**settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("said", "applied"),
    [
        (0.5, Extrapolation(strength=0.5, gate="delta", threshold=-0.3, primary="base")),
        (
            {"threshold": -1},
            Extrapolation(strength=0.1, gate="delta", threshold=-1, primary="base"),
        ),
        ({"gate": "delta"}, GATED),
        # Threshold and primary are the gate's: another gate starts without.
        ({"gate": "none"}, Extrapolation(strength=0.1)),
        ({"gate": "all"}, Extrapolation(strength=0.1, gate="all")),
        ({"gate": "kl", "threshold": 1}, Extrapolation(strength=0.1, gate="kl", threshold=1)),
    ],
)
def test_a_request_inherits_what_belongs_to_its_gate(said, applied):
    assert Extrapolation.from_request(said, GATED) == applied


def test_another_gate_does_not_inherit_the_threshold():
    with pytest.raises(SettingError, match="gate entropy needs a number from 0 to 20"):
        Extrapolation.from_request({"gate": "entropy"}, GATED)


def test_unknown_settings_are_refused_with_the_known_ones():
    with pytest.raises(SettingError, match="known: strength, plausibility, gate, threshold, prim"):
        Extrapolation.from_request({"tau": 1}, GATED)


@pytest.mark.parametrize(
    ("settings", "gated", "uses_base"),
    [
        ({}, False, False),
        ({"strength": 0.1}, False, True),
        ({"plausibility": 0.1}, False, False),
        ({"gate": "all"}, True, True),
    ],
)
def test_plain_rlvr_is_told_from_the_rest(settings, gated, uses_base):
    made = Extrapolation(**settings)
    assert (made.gated, made.uses_base) == (gated, uses_base)
