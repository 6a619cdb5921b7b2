"""The recipes for a real model: all they name exists, and there is enough to ask."""

import pytest

from rlvr_decode.training.config import RECIPES, load
from rlvr_decode.training.engines import check_engine
from rlvr_decode.training.policy.adapted import adapter_config
from rlvr_decode.training.setup import make_objective
from rlvr_decode.training.tasks.data import make_task

NAMES = sorted(path.stem for path in RECIPES.glob("smollm2*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_recipe_names_exists(name):
    recipe = load(name)
    assert (recipe.name, recipe.base) == (name, "smollm2-135m-instruct")
    check_engine(recipe)
    assert make_objective(recipe).dynamic_sampling
    assert adapter_config(recipe.adapter).rank == 4
    assert recipe.optim.micro_batch % recipe.rollout.group == 0
    prompt = make_task(recipe.task.name, recipe.task.options).prompt(0, seed=0, split="train")
    [(role, text)] = prompt.messages
    assert role == "user" and text.endswith("\nAnswer with only the number.")


def test_only_the_objective_and_the_adapter_set_the_arms_apart():
    first = load("smollm2")
    arms = [load(f"smollm2-{arm}") for arm in ("lpo", "lpo-reweight", "lora")]
    for arm in arms:
        assert (arm.task, arm.rollout, arm.optim) == (first.task, first.rollout, first.optim)
        assert (arm.seed, arm.evaluation) == (first.seed, first.evaluation)
    assert [arm.objective.name for arm in arms] == ["lpo_fwd", "lpo_fwd", "grpo"]
    assert arms[0].objective.options.items() < arms[1].objective.options.items()
    assert [arm.adapter.kind for arm in arms] == ["geora", "geora", "lora"]
    assert arms[2].objective == first.objective


def test_hundreds_of_sums_are_held_out():
    recipe = load("smollm2")
    task = make_task(recipe.task.name, recipe.task.options)
    held_out = {task.prompt(i, seed=1, split="held_out").text for i in range(700)}
    trained_on = {task.prompt(i, seed=0, split="train").text for i in range(700)}
    assert len(held_out) > 300 and not held_out & trained_on
    prompt = task.prompt(0, seed=1, split="held_out")
    assert task.reward(prompt, f"It is {prompt.answer}.") == 1.0
    assert task.reward(prompt, "no number") == 0.0
