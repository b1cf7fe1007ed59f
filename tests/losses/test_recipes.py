"""Recipes pass the shared tester, and differ from `twdpo` by their scorer and their defaults alone."""

import pytest
import torch
from tester import LossTester, make_pairs, make_statistics

from plo.losses import LOSSES, get_loss

RECIPES = {entry.name: entry.facts.recipe for entry in LOSSES if entry.facts.recipe}
PAPERS = {
    "d2po": ("twdpo", "position_decay"),
    "sampo": ("twdpo", "subsample"),
    "tis_dpo": ("twdpo", "tis_rank"),
    "tgdpo": ("twdpo", "tgdpo"),
    "attention_po": ("twdpo", "attention_judge"),
}


@pytest.mark.parametrize("spec", PAPERS)
class TestEveryRecipe(LossTester):
    pass


def test_the_recipes():
    assert PAPERS.items() <= RECIPES.items()
    assert all(LOSSES[name].facts.paper for name in RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_loss_with_its_scorer(name):
    loss, scorer = RECIPES[name]
    recipe = get_loss(name)
    own = {key: value for key, value in recipe.params.items() if key in get_loss(loss).params}
    apart = get_loss(loss, scorer=recipe.scorer.name, **own)
    assert recipe.scorer.entry.name == scorer and apart.scorer.params == recipe.scorer.params
    pairs = make_pairs(make_statistics(recipe.needs), recipe.needs)
    torch.testing.assert_close(recipe(pairs), apart(pairs), rtol=0, atol=0)


def test_hyper_parameters_go_where_they_belong():
    assert get_loss("d2po(gamma=0.9)").scorer.params == {"gamma": 0.9}
    tgdpo = get_loss("tgdpo(beta=0.3, alpha=0.2)")
    assert (tgdpo.scorer.params["beta"], tgdpo.scorer.params["alpha"], tgdpo.params["beta"]) == (0.3, 0.2, 0.3)
    assert tgdpo.scorer.params["oracle_beta"] == 0.1
    assert get_loss("attention_po(layer=mean)").params["beta"] == 0.005
    assert get_loss("attention_po(layer=mean)").scorer.name == "attention_judge(layer=mean)"
