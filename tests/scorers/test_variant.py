"""A variant joins a loss and its scorer; a recipe is a variant with a name of its own."""

from pathlib import Path

import pytest
import torch

import plo
from plo import get_loss, get_variant
from plo.cli.overrides import with_hyper_parameters
from plo.config import load_experiment
from plo.errors import PloError
from plo.losses import LossError, LossSum, register_loss
from plo.losses import get_loss as get_plain_loss
from plo.pairs import MissingStatistic
from plo.registry import RegistryError
from plo.scorers import RECIPES, register_recipe, register_scorer
from plo.scorers.recipe import BUILT_IN
from plo.verify.inputs import make_pairs, make_statistics

TOKEN_LEVEL = Path(__file__).parents[2] / "docs" / "token_level.yaml"
SCORERS_OF = {
    "d2po": "position_decay",
    "sampo": "subsample",
    "tis_dpo": "tis_rank",
    "tgdpo": "tgdpo",
    "attention_po": "attention_judge",
}


def pairs_for(needs):
    return make_pairs(make_statistics(needs), needs)


def test_the_recipes():
    assert set(BUILT_IN) == set(SCORERS_OF) <= set(RECIPES.names())
    assert all(RECIPES[name].facts.paper for name in RECIPES.names())


@pytest.mark.parametrize("name", SCORERS_OF)
def test_a_recipe_is_its_loss_with_its_scorer(name):
    recipe = get_variant(name)
    own = {key: value for key, value in recipe.params.items() if key in get_plain_loss("twdpo").params}
    apart = get_variant("twdpo", scorer=recipe.scorer.name, **own)
    assert recipe.scorer.entry.name == SCORERS_OF[name] and apart.scorer.params == recipe.scorer.params
    pairs = pairs_for(recipe.needs)
    torch.testing.assert_close(recipe(pairs), apart(pairs), rtol=0, atol=0)
    torch.testing.assert_close(recipe(pairs), get_plain_loss("twdpo", **own)(pairs), rtol=0, atol=0)
    assert get_variant(recipe.name).source == recipe.source


def test_hyper_parameters_go_where_they_belong():
    assert get_variant("d2po(gamma=0.9)").scorer.params == {"gamma": 0.9}
    tgdpo = get_variant("tgdpo(beta=0.3, alpha=0.2)")
    assert (tgdpo.scorer.params["beta"], tgdpo.scorer.params["alpha"], tgdpo.params["beta"]) == (0.3, 0.2, 0.3)
    assert tgdpo.loss.params["beta"] == 0.3 and tgdpo.scorer.params["oracle_beta"] == 0.1
    assert get_variant("attention_po(layer=mean)").params["beta"] == 0.005
    assert get_variant("attention_po(layer=mean)").scorer.name == "attention_judge(layer=mean)"


@pytest.mark.parametrize("spec", ["twdpo", "tis_dpo", "twdpo(scorer=position_decay(gamma=0.9))", "dpo + 0.2*sft"])
def test_plo_get_loss_makes_a_loss_of_any_variant(spec):
    loss = get_loss(spec)
    assert (loss.name, get_variant(spec).name) == (spec, spec)
    assert loss(pairs_for(loss.needs)).shape == (4,)
    if "weights" in loss.needs:
        with pytest.raises(MissingStatistic, match="weights"):
            loss(pairs_for(("ref_logps",)))


def test_a_sum_has_one_scorer_and_names_its_metrics_by_its_terms():
    variant = get_variant("0.5*d2po(gamma=0.9) + 0.2*sft")
    assert isinstance(variant.loss, LossSum) and variant.registered_name == variant.name == variant.loss.name
    assert variant.scorer.name == "position_decay(gamma=0.9)"
    assert variant.params["d2po(gamma=0.9)"]["gamma"] == 0.9
    assert set(variant.loss.evaluate(pairs_for(variant.needs)).metrics) == {"d2po(gamma=0.9)/margin"}
    with pytest.raises(LossError, match="need different token weights .position_decay, subsample.: one scorer a sum"):
        get_variant("d2po + sampo")


@pytest.mark.parametrize(
    ("spec", "params", "message"),
    [
        ("dpo", {"scorer": "uniform"}, "'dpo' takes no scorer='uniform': only losses that need token weights"),
        ("d2po", {"scorer": "uniform"}, "'d2po' takes no scorer='uniform': it is twdpo . position_decay"),
        ("d2po", {"lam": 1}, "The recipe 'd2po' has no hyper-parameter 'lam'. It has: gamma, beta, loss_type, kl"),
        ("twdpo(beta=0.2) + sft", {"beta": 1}, "belong to its terms"),
        (get_loss("dpo"), {"beta": 1}, "configured already"),
        (get_variant("dpo"), {"beta": 1}, "configured already"),
    ],
)
def test_what_a_variant_refuses(spec, params, message):
    with pytest.raises(LossError, match=message):
        get_variant(spec, **params)


def test_a_loss_by_itself_names_the_remedy():
    with pytest.raises(LossError, match=r"'twdpo' takes no scorer: .* plo.get_variant\('twdpo\(scorer=...\)'\)"):
        get_plain_loss("twdpo(scorer=subsample)")


def test_the_code_of_the_scorer_is_part_of_what_identifies_a_variant():
    """Parameters alone do not distinguish recipes of scorers that have none, nor two versions of a scorer."""

    def constant(value):
        def scorer(material):
            for pair in material.pairs:
                yield tuple(torch.full((len(ids),), value) for ids in (pair.chosen_ids, pair.rejected_ids))

        register_scorer("constant", replace=True)(scorer)
        register_recipe("by_constant", loss="twdpo", scorer="constant", paper="mine", replace=True)
        return [get_variant(spec).source for spec in ("by_constant", "twdpo(scorer=constant)", "dpo + 0.1*by_constant")]

    first, again, other = constant(1.0), constant(1.0), constant(2.0)
    assert first == again and not set(first) & set(other)
    assert get_variant("sampo").source != first[0]


def test_a_term_that_becomes_a_sum_keeps_its_coefficient():
    def change(term):
        return get_variant("0.5*dpo + 3*ipo") if term.name == "dpo" else term

    assert get_variant("4*dpo + 0.2*sft").each_term(change).name == "2*dpo + 12*ipo + 0.2*sft"


def test_a_name_of_a_loss_and_of_a_recipe_is_ambiguous():
    register_loss("of_both", needs=("ref_logps",))(lambda pairs: pairs.chosen.logp())
    register_recipe("of_both", loss="twdpo", scorer="subsample", paper="mine")
    with pytest.raises(RegistryError, match="'of_both' is the name of a loss .*test_variant.py:.* and of a recipe"):
        get_variant("of_both")


def test_an_unknown_name_is_answered_with_losses_and_recipes():
    message = "There is no loss 'tisdpo'. Did you mean 'tis_dpo' or .*Registered: .*dpo, .* tis_dpo, .*One of your own"
    with pytest.raises(RegistryError, match=message):
        get_variant("tisdpo + 0.2*sft")


def test_a_function_that_is_refused_is_not_answered_with_names():
    with pytest.raises(RegistryError, match=r"takes beta by position.*\(pairs, \*, beta=...\)\.$"):
        get_variant(lambda pairs, beta: pairs.chosen.logp())


def test_a_configured_loss_stays_the_same_object():
    """Whoever holds a loss with parameters of its own finds the trained ones in it."""
    loss = get_plain_loss("tbpo_q").build(3)
    assert get_loss(loss) is loss


def test_a_variant_of_a_loss_and_of_a_variant():
    variant = get_variant("dpo + 0.2*twdpo(beta=0.3)")
    assert get_variant(variant) is variant
    again = get_variant(get_plain_loss("dpo + 0.2*twdpo(beta=0.3)"))
    assert (again.name, again.scorer.name, again.source) == (variant.name, "uniform", variant.source)


def test_one_setting_reaches_every_variant_of_the_token_level_comparison():
    experiment = with_hyper_parameters(load_experiment(TOKEN_LEVEL, {}), {"beta": 0.2})
    for spec in experiment.losses:
        variant = get_variant(spec)
        assert variant.params.get("beta", 0.2) == 0.2, spec
        statistics = make_statistics(variant.needs)
        variant.loss.build(statistics[0]["logps"].shape[-1] + 1).double()
        assert variant(make_pairs(statistics, variant.needs)).isfinite().all()
    names = [get_variant(spec).name for spec in experiment.losses]
    assert names[2:4] == ["attention_po(beta=0.2)", "sepo(gamma=2)"]


def test_plo_names_variants_lazily():
    assert plo.Variant is type(get_variant("dpo")) and {"Variant", "get_variant"} <= set(dir(plo))


@pytest.mark.parametrize(
    ("spec", "name", "train"),
    [
        ("dpo @ lr=1e-5", "dpo @ lr=1e-05", {"lr": 1e-5}),
        (
            {"dpo": {"beta": 0.2, "train": {"lr": "1e-5", "epochs": 2}}},
            "dpo(beta=0.2) @ epochs=2 lr=1e-05",
            {"lr": 1e-5, "epochs": 2},
        ),
        ({"name": "ipo", "train": {"lr": 1e-5}}, "ipo @ lr=1e-05", {"lr": 1e-5}),
        ({"dpo + 0.2*sft": {"train": {"lr": 1e-5}}}, "dpo + 0.2*sft @ lr=1e-05", {"lr": 1e-5}),
    ],
)
def test_training_settings_of_a_variants_own(spec, name, train):
    variant = get_variant(spec)
    assert variant.name == name and variant.train == train
    assert "@" not in variant.loss.name and "@" not in variant.registered_name
    again = get_variant(name).each_term(lambda term: term)
    assert again.name == name and again.train == train


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dpo @ lr", r"Cannot read the training settings 'lr' of 'dpo': write dpo @ lr=1e-5 epochs=2"),
        ("dpo @ lrr=1", r"(?s)training settings of dpo cannot be used.*lrr.*did you mean lr\?"),
        ({"dpo": {"train": {"lr": -1}}}, "lr: Input should be greater than 0"),
        ({"dpo": {"train": 3}}, r"train=3 of 'dpo' must map training settings to values"),
    ],
)
def test_training_settings_that_cannot_be_used_are_refused(spec, message):
    with pytest.raises(PloError, match=message):
        get_variant(spec)
