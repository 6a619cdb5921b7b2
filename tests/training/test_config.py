"""Recipes: what is read, what is overridden, and what is refused by name."""

import copy
import datetime
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr_decode.training.config import RECIPES, Train, build, load, override
from rlvr_decode.training.recipe_file import read_values

MINIMAL = {"name": "x", "base": "some/model", "task": {"name": "add3"}}


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_bundled_recipes_load(recipe):
    assert load(recipe).name == recipe


def test_overrides_reach_every_level(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('name = "x"\nbase = "m"\n[task]\nname = "add3"\n[optim]\nlr = 1\n')
    config = load(
        recipe,
        ["optim.steps=7", "objective.name=rloo", "objective.options.eps=1e-4", "name=y"],
    )
    assert (config.optim.lr, config.optim.steps) == (1.0, 7)
    assert (config.objective.name, config.objective.options) == ("rloo", {"eps": 1e-4})
    assert config.name == "y"


def test_an_override_is_toml_or_else_text():
    values = {}
    for item in ("a.flag=true", "a.list=[0.9, 0.99]", "a.text=grpo", "a.path=../x=y"):
        override(values, item)
    assert values == {"a": {"flag": True, "list": [0.9, 0.99], "text": "grpo", "path": "../x=y"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"lrr": 1.0}}, "optim: unknown lrr; known: steps, lr, warmup"),
        ({"optm": {}}, "recipe: unknown optm; known: name, task, base"),
        ({"task": {}}, "task: name must be given"),
        ({"task": "add3"}, r"task='add3': is a section, \[task\]"),
        ({"seed": "1"}, "seed='1': must be int, not str"),
        ({"optim": {"lr": float("nan")}}, "optim.lr=nan: must be a number"),
        ({"optim": {"betas": [0.9, float("nan")]}}, r"optim.betas.*nan: must be a number"),
        ({"optim": {"lr": 10**400}}, "optim.lr=1000.*: is larger than every float"),
        ({"seed": True}, "seed=True: must be int, not bool"),
        ({"optim": {"lr": True}}, "optim.lr=True: must be float, not bool"),
        ({"optim": {"betas": [0.9, "x"]}}, r"optim.betas\[1\]='x': must be float, not str"),
        ({"rollout": {"group": 0}}, "rollout.group=0: must be at least 1"),
        ({"threads": 0}, "threads=0: must be at least 1"),
        ({"rollout": {"time_out": 0}}, "rollout.time_out=0: must be above 0, and at most 1e8"),
        ({"process_time_out": float("inf")}, "process_time_out=inf: must be above 0, and at most"),
        ({"rollout": {"temperature": 0}}, "rollout.temperature=0.0: must be above 0"),
        ({"defaults": {"strength": 99.0}}, "strength=99.0: must be from -1 to 10"),
        ({"pretrain": {}}, "give either base .* or .pretrain."),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(Train, MINIMAL | changes)


def test_an_override_of_several_lines_is_text():
    values = {}
    override(values, "a=1\nb = 2")
    override(values, "c=" + "[" * 10_000)
    assert values == {"a": "1\nb = 2", "c": "[" * 10_000}


scalars = st.one_of(
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([2**70, 10**400, math.nan, math.inf, -1.5, datetime.date(2020, 1, 1)]),
    st.floats(),
    st.text(max_size=5),
)
toml = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
RECIPE_VALUES = [read_values(path, bundled=RECIPES) for path in sorted(RECIPES.glob("*.toml"))]
FIXED = settings(max_examples=200, deadline=None, derandomize=True)


def places(value, place=()):
    for key, each in value.items():
        yield (*place, key)
        if isinstance(each, dict):
            yield from places(each, (*place, key))


@FIXED
@given(data=st.data())
def test_any_change_to_a_recipe_is_read_or_refused(data):
    values = copy.deepcopy(data.draw(st.sampled_from(RECIPE_VALUES)))
    for _ in range(data.draw(st.integers(1, 2))):
        *way, key = data.draw(st.sampled_from(list(places(values))))
        inner = values
        for step in way:
            inner = inner[step]
        inner[data.draw(st.sampled_from([key, key, "optim", "steps", "x"]))] = data.draw(toml)
    read_or_refused(lambda: build(Train, values))


@FIXED
@given(data=st.data())
def test_any_damage_to_a_recipe_is_read_or_refused(tmp_path_factory, data):
    written = bytearray(data.draw(st.sampled_from(sorted(RECIPES.glob("*.toml")))).read_bytes())
    start = data.draw(st.integers(0, len(written)))
    written[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    damaged = tmp_path_factory.getbasetemp() / "damaged.toml"
    damaged.write_bytes(written)
    read_or_refused(lambda: load(damaged))


def read_or_refused(read):
    try:
        config = read()
    except ValueError as error:
        assert str(error)
    else:
        assert isinstance(config, Train)
        assert not math.isnan(config.optim.lr)


@pytest.mark.parametrize("text", ["a = ", "a = 1\na = 2", "a = " + "[" * 10_000, "\xff"])
def test_what_is_no_toml_is_refused_by_file(tmp_path, text):
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="mine.toml: not valid TOML"):
        load(file)


@pytest.mark.parametrize("item", ["optim.lr", "=3", "optim..lr=3"])
def test_a_malformed_override_is_refused(item):
    with pytest.raises(ValueError, match="write it as section.key=value"):
        override({}, item)


def test_a_value_is_not_a_section():
    with pytest.raises(ValueError, match="name is a value, not a section"):
        override({"name": "x"}, "name.first=1")


def test_an_unknown_recipe_names_the_bundled_ones():
    with pytest.raises(ValueError, match="recipe 'tinny': no such file; bundled: .*tiny"):
        load("tinny")


def test_a_base_is_needed_one_way_or_the_other():
    with pytest.raises(ValueError, match="give either base .* or .pretrain."):
        build(Train, {"name": "x", "task": {"name": "add3"}})
