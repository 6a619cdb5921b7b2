"""Whatever JSON says of a request or of a pair: a valid value, or a ValueError that names it."""

import copy
import json

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rlvr_decode.pair import Pair, write_pair
from rlvr_decode.params import GATES, PRIMARIES, Extrapolation, SettingError
from rlvr_decode.testing import make_checkpoints

FIXED = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 12),
    st.floats(),
    st.floats(-1, 1),
    st.text(max_size=8),
    st.sampled_from([*GATES, *PRIMARIES, "../..", "/", "\ud800", "\x00", 10**400, ""]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
names = st.sampled_from(["strength", "plausibility", "gate", "threshold", "primary"])
objects = st.dictionaries(st.one_of(names, st.text(max_size=6)), anything, max_size=5)

permitted = st.builds(
    lambda **chosen: chosen,
    strength=st.floats(-1, 10),
    plausibility=st.floats(0, 1),
    gate=st.sampled_from(GATES),
    threshold=st.one_of(st.none(), st.floats(-100, 100)),
    primary=st.sampled_from(PRIMARIES),
)


@FIXED
@given(value=st.one_of(anything, objects), defaults=permitted)
def test_any_json_is_a_setting_or_refused(value, defaults):
    try:
        kept = Extrapolation(**defaults)
    except SettingError:
        kept = Extrapolation(strength=0.5)
    try:
        made = Extrapolation.from_request(value, kept)
    except SettingError as error:
        assert str(error).startswith(f"{error.name}=") and error.reason
    else:
        said = value if isinstance(value, dict) else {"strength": value}
        assert {name: getattr(made, name) for name in said} == said
        assert Extrapolation.from_extra_args(made.to_extra_args()) == made


@FIXED
@given(chosen=permitted)
def test_settings_survive_every_way_they_travel(chosen):
    try:
        made = Extrapolation(**chosen)
    except SettingError:
        assume(False)
    assert Extrapolation.from_extra_args(made.to_extra_args()) == made
    assert Extrapolation.from_extra_args(json.loads(json.dumps(made.to_extra_args()))) == made
    assert Extrapolation.from_request(chosen, Extrapolation(gate="all")) == made
    assert made.uses_base == (made.gated or made.strength != 0)


@FIXED
@given(xargs=st.dictionaries(
    st.one_of(names.map("extrapolation_{}".format), st.text(max_size=6)), anything, max_size=4
))  # fmt: skip
def test_any_xargs_are_settings_or_refused(xargs):
    try:
        made = Extrapolation.from_extra_args(xargs)
    except SettingError as error:
        assert "extrapolation" in error.name
    else:
        assert all(
            getattr(made, key.removeprefix("extrapolation_")) == value
            for key, value in xargs.items()
            if key.startswith("extrapolation")
        )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The directory of a sound pair, and what its file says."""
    directory = tmp_path_factory.mktemp("pair")
    base, rlvr = make_checkpoints(directory)
    write_pair(directory, name="mine", base=base, rlvr=rlvr, provenance={"steps": 1})
    (directory / "up").symlink_to("/")
    return directory, json.loads((directory / "pair.json").read_text())


def places(value, place=()):
    """Where something is, in a tree of objects."""
    for key, each in value.items():
        yield (*place, key)
        if isinstance(each, dict):
            yield from places(each, (*place, key))


@FIXED
@given(data=st.data())
def test_any_change_to_a_pairs_file_is_read_or_refused(pair, data):
    directory, sound = pair
    changed = copy.deepcopy(sound)
    for _ in range(data.draw(st.integers(1, 2))):
        *way, key = data.draw(st.sampled_from(list(places(changed))))
        inner = changed
        for step in way:
            inner = inner[step]
        new = data.draw(st.sampled_from([key, key, "path", "local", "revision", "é"]))
        paths = st.sampled_from(["..", "up", "up/etc", "base/../..", "a/b", "base\x00", "~"])
        inner[new] = data.draw(st.one_of(anything, paths))
        if new != key and data.draw(st.booleans()):
            del inner[key]
    expect_a_pair_or_a_refusal(directory, json.dumps(changed).encode())


@FIXED
@given(data=st.data())
def test_any_damage_to_a_pairs_file_is_read_or_refused(pair, data):
    directory, sound = pair
    written = bytearray(json.dumps(sound).encode())
    start = data.draw(st.integers(0, len(written)))
    end = min(len(written), start + data.draw(st.integers(0, 8)))
    written[start:end] = data.draw(st.binary(max_size=8))
    expect_a_pair_or_a_refusal(directory, bytes(written))


def expect_a_pair_or_a_refusal(directory, written):
    file = directory / "pair.json"
    file.write_bytes(written)
    try:
        read = Pair.read(directory)
    except ValueError as error:
        assert str(error).startswith(f"{file}: ")
    else:
        # Only spelt out as `local` may a directory be another than the pair's own.
        places = [each for each in (read.base, read.rlvr) if each.directory is not None]
        spelt = b'"local"' in written
        assert spelt or all(each.directory.is_relative_to(directory) for each in places)


@pytest.mark.parametrize("written", [b"[" * 200_000, b'{"a": NaN}', b'{"a": "\\ud800"}', b"\xff"])
def test_what_no_answer_could_repeat_is_refused(pair, written):
    directory, _ = pair
    (directory / "pair.json").write_bytes(written)
    with pytest.raises(ValueError, match="pair.json: not valid JSON"):
        Pair.read(directory)
