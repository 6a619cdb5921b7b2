"""Recipes: what is read, what is overridden, and what is refused by name."""

import pytest

from rlvr_decode.training.config import RECIPES, Train, build, load, override

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
