"""Recipes of `soe` and `sft`: the bundled ones, overrides, and names that are wrong."""

import pytest

from rlvr_decode.training.recipe import read_recipe
from rlvr_decode.training.sft import SFT
from rlvr_decode.training.soe.config import SOE


def test_bundled_recipes_fit_together() -> None:
    soe, sft = read_recipe(SOE, "soe", "tiny"), read_recipe(SFT, "sft", "tiny")
    assert sft.traces == f"{soe.out}/{soe.name}/traces.jsonl"
    assert sft.base == soe.teacher


def test_overrides_reach_into_sections() -> None:
    soe = read_recipe(SOE, "soe", "tiny", ["search.choice=random", "search.k=3", "seed=5"])
    assert (soe.search.choice, soe.search.k, soe.seed) == ("random", 3, 5)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match=r"'huge': no such file; bundled: .*tiny"):
        read_recipe(SOE, "soe", "huge")
    with pytest.raises(ValueError, match="search: unknown probe; known: choice"):
        read_recipe(SOE, "soe", "tiny", ["search.probe=3"])
