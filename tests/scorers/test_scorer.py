"""Scorers are registered, configured and named like losses; a loss that needs weights says which scorer makes them."""

from types import SimpleNamespace

import pytest
import torch

from plo.configured import HyperParameterError
from plo.losses import LossError, register_loss
from plo.scorers import ScorerError, Stage, get_scorer, get_variant, register_recipe, register_scorer


@pytest.fixture
def registered():
    @register_loss("weighted", needs=("ref_logps", "weights"))
    def weighted(pairs, *, beta: float = 0.1):
        return -beta * ((pairs.chosen.weights * pairs.chosen.log_ratios).sum(-1))

    @register_scorer("slope", stages=lambda model: {"oracle": Stage(model=model)})
    def slope(material, *, beta: float = 1.0, step: float = 0.5, model: str | None = None):
        for pair in material.pairs:
            yield tuple(beta + step * torch.arange(len(ids)) for ids in (pair.chosen_ids, pair.rejected_ids))

    @register_scorer("twice", seeded=True)
    def twice(material, *, of: str = "uniform"):
        for chosen, rejected in get_scorer(of)(material):
            yield 2 * chosen, 2 * rejected


def weights_of(scorer, tiny_pairs):
    return list(scorer(SimpleNamespace(pairs=tiny_pairs(2), seed=0)))


def test_a_scorer_is_configured_and_named(registered, tiny_pairs):
    scorer = get_scorer("slope(step=0.25)")
    assert (scorer.name, scorer.params["beta"], scorer.stages["oracle"].loss) == ("slope(step=0.25)", 1.0, "dpo")
    assert get_scorer({"slope": {"step": 0.25}}).name == get_scorer({"name": "slope", "step": 0.25}).name == scorer.name
    chosen, rejected = weights_of(scorer, tiny_pairs)[1]
    assert chosen.tolist() == [1 + 0.25 * i for i in range(len(tiny_pairs(2)[1].chosen_ids))]
    assert len(rejected) == len(tiny_pairs(2)[1].rejected_ids)


def test_a_scorer_of_another_has_what_that_one_needs(registered):
    scorer = get_scorer("twice(of=slope(model=small))")
    assert scorer.seeded and scorer.stages["oracle"].model == "small"
    assert not scorer.inner.seeded


def test_a_loss_names_its_scorer(registered):
    assert get_variant("weighted").scorer.name == "uniform"
    variant = get_variant("weighted(scorer=slope(step=2.0), beta=0.5)")
    assert (variant.name, variant.scorer.params["step"]) == ("weighted(scorer=slope(step=2), beta=0.5)", 2.0)
    assert variant.params == {"beta": 0.5, "scorer": "slope(step=2)"}
    assert get_variant({"weighted": {"scorer": {"slope": {"step": 2.0}}, "beta": 0.5}}).name == variant.name
    assert get_variant(variant.name).source == variant.source != get_variant("weighted(scorer=slope, beta=0.5)").source
    assert get_variant("dpo").scorer is None


def test_a_recipe_has_the_hyper_parameters_of_both(registered):
    register_recipe("sloped", loss="weighted", scorer="slope", paper="mine", step=3.0)
    variant = get_variant("sloped(beta=0.2)")
    assert variant.name == "sloped(beta=0.2)"
    assert variant.needs == ("ref_logps", "weights")
    assert variant.scorer.params == {"beta": 0.2, "step": 3.0, "model": None}  # beta is of both
    assert variant.params == {"beta": 0.2, "step": 3.0, "model": None}
    with pytest.raises(LossError, match="has no hyper-parameter 'gamma'. It has: beta, step, model"):
        get_variant("sloped", gamma=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: get_variant("dpo(scorer=uniform)"), "The loss 'dpo' takes no scorer='uniform'"),
        (lambda: get_variant("weighted(scorer=unifrom)"), "There is no token scorer 'unifrom'. Did you mean 'uniform'"),
        (lambda: get_scorer("slope(steps=1)"), "The token scorer 'slope' has no hyper-parameter 'steps'"),
        (lambda: get_scorer("slope(step=x)"), "step='x' of the token scorer 'slope'"),
        (lambda: get_scorer("slope("), "Cannot read 'slope\\('"),
        (lambda: get_scorer(3), "Cannot make a token scorer of 3"),
        (lambda: get_variant("weighted + weighted(scorer=slope)"), "need different token weights"),
    ],
)
def test_mistakes_name_the_thing(registered, make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "wrong", [lambda n: torch.ones(n + 1), lambda n: torch.full((n,), float("nan")), lambda n: 1.0]
)
def test_weights_of_the_wrong_shape_are_refused(tiny_pairs, wrong):
    @register_scorer("wrong")
    def scorer(material):
        for pair in material.pairs:
            yield torch.ones(len(pair.chosen_ids)), wrong(len(pair.rejected_ids))

    with pytest.raises(ScorerError, match="'wrong' .* must yield one finite number per response token, .* for row 0"):
        weights_of(get_scorer("wrong"), tiny_pairs)


@pytest.mark.parametrize(
    ("count", "message"), [(1, "yielded nothing for row 1"), (3, "more than two tensors for every")]
)
def test_too_few_and_too_many_are_refused(tiny_pairs, count, message):
    @register_scorer("miscounting")
    def scorer(material):
        for i in range(count):
            pair = material.pairs[min(i, 1)]
            yield torch.ones(len(pair.chosen_ids)), torch.ones(len(pair.rejected_ids))

    with pytest.raises(ScorerError, match=message):
        weights_of(get_scorer("miscounting"), tiny_pairs)


def test_hyper_parameter_errors_are_value_errors():
    assert issubclass(HyperParameterError, ValueError)


@pytest.mark.parametrize("path", ["org/small", "/tmp/a b/c", "it's", "v1.5-small"])
def test_a_name_can_be_read_back_whatever_the_value(registered, path):
    variant = get_variant({"weighted": {"scorer": {"twice": {"of": {"name": "slope", "model": path}}}}})
    assert variant.scorer.stages["oracle"].model == path
    again = get_variant(variant.name)
    assert (again.name, again.scorer.stages["oracle"].model) == (variant.name, path)
