"""Every recipe on the tiny task takes a step; one that extends another says what differs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlvr_decode.pair import Pair
from rlvr_decode.training.config import RECIPES, Checkpoint, load
from rlvr_decode.training.recipe_file import over, read_values
from rlvr_decode.training.trainer import train_recipe

RECIPE_NAMES = sorted(path.stem for path in RECIPES.glob("tiny*.toml"))
FAMILIES = [
    {"rloo", "reinforce", "reinforce_pp", "reinforce_pp_baseline", "remax", "opo", "gpg"},
    {"grpo", "dr_grpo", "lite_ppo"},
    {"dapo"},
    {"cispo", "sapo", "dppo_tv", "dppo_kl", "clip_cov", "kl_cov"},
    {"gspo", "gspo_token", "gmpo", "luspo", "vespo"},
    {"maxrl"},
    {"pass_at_k"},
    {"w_reinforce", "psr", "nsr", "grpo_n", "gspo_n", "ngrpo"},
    {"reweight", "dominate", "normalize", "middle", "ppl", "ppl_norm", "fipo"},
    {"lpo_fwd", "lpo_rev", "lpo_js", "lpo_alpha", "lpo_hellinger", "tpo"},
    {"mrpo", "a_grae", "verl"},
]


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_one_step(name, tmp_path):
    """From the bundled base, with two prompts, and all else as the recipe has it."""
    recipe = load(name)
    short = replace(
        recipe,
        base=str(Pair.open("tiny").base.fetch()),
        pretrain=None,
        out=str(tmp_path),
        rollout=replace(recipe.rollout, prompts=2, group=4),
        optim=replace(recipe.optim, steps=min(1, recipe.optim.steps)),
        evaluation=replace(recipe.evaluation, prompts=4),
        checkpoint=Checkpoint(),
    )
    assert train_recipe(short).is_file()


def test_every_family_of_objectives_has_a_recipe():
    objectives = {load(name).objective.name for name in RECIPE_NAMES}
    assert all(family & objectives for family in FAMILIES)


def test_a_recipe_extends_another_key_by_key(tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "tiny-dapo"\nname = "mine"\noptim.lr = 1e-3\n')
    parent, mine = load("tiny-dapo"), load(tmp_path / "mine.toml")
    assert mine == replace(parent, name="mine", optim=replace(parent.optim, lr=1e-3))


def test_a_file_extends_the_file_beside_it(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "b.toml"\nx = 1\n')
    (tmp_path / "b.toml").write_text("x = 2\ny = 3\n")
    assert read_values(tmp_path / "a.toml", bundled=RECIPES) == {"x": 1, "y": 3}


def test_another_objective_takes_none_of_the_options():
    gspo = {"objective": {"name": "gspo", "options": {"clip_low": 0.1}}}
    assert over(gspo, {"objective": {"name": "rloo"}}) == {"objective": {"name": "rloo"}}
    same = over(gspo, {"objective": {"name": "gspo", "options": {"eps": 0.0}}})
    assert same["objective"]["options"] == {"clip_low": 0.1, "eps": 0.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "tinny"', "recipe 'tinny': no such file; bundled: .*tiny"),
        ("extends = 3", "extends=3 must be the name of a recipe or a file"),
        ('extends = "mine.toml"', "mine.toml: extends itself, by way of mine.toml"),
    ],
)
def test_what_cannot_be_extended_is_named(text, message, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_values(tmp_path / "mine.toml", bundled=RECIPES)
