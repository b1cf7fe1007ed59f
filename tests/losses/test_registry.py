"""How a loss is named and configured, and what goes wrong by name."""

import dataclasses
import functools

import pytest
import torch

from plo.losses import (
    LOSSES,
    Loss,
    LossError,
    LossSum,
    get_loss,
    register_loss,
)
from plo.losses.dpo import dpo
from plo.pairs import MissingStatistic, Pairs
from plo.registry import NoFacts, Registry, RegistryError
from plo.verify.inputs import make_pairs, make_statistics

PAIRS = make_pairs(make_statistics(("ref_logps", "kl_ref_pi")), ("ref_logps", "column:gap"))


@pytest.mark.parametrize(
    "loss",
    [
        lambda: get_loss("dpo", beta=0.2),
        lambda: get_loss("dpo(beta=0.2)"),
        lambda: get_loss({"name": "dpo", "beta": 0.2}),
        lambda: get_loss({"dpo": {"beta": 0.2}}),
        lambda: get_loss({"name": "dpo"}, beta=0.2),
        lambda: get_loss({"name": "dpo", "beta": 0.3}, beta=0.2),  # what is said last
        lambda: get_loss({"dpo": None}, beta=0.2),
        lambda: get_loss(dpo, beta=0.2),
        lambda: get_loss(functools.partial(dpo, beta=0.2)),
        lambda: get_loss("dpo", beta="0.2"),  # from a command line
        lambda: get_loss(get_loss("dpo", beta=0.2)),
    ],
)
def test_every_way_to_say_it_is_the_same_loss(loss):
    loss = loss()
    assert (loss.name, loss.params) == ("dpo(beta=0.2)", {"beta": 0.2, "label_smoothing": 0.0})
    expected, _ = dpo(PAIRS, beta=0.2)
    torch.testing.assert_close(loss(PAIRS), expected)


def test_a_function_of_ones_own():
    def hinge2(pairs: Pairs, *, beta: float = 0.1):
        return torch.relu(1 - beta * pairs.log_ratio_margin()).square()

    loss = get_loss(hinge2, beta=2.0)
    assert loss.needs == ("ref_logps",)
    torch.testing.assert_close(loss(PAIRS), (1 - 2 * PAIRS.log_ratio_margin()).clamp(min=0) ** 2)
    assert "hinge2" not in LOSSES
    register_loss("hinge2", needs=("ref_logps",))(hinge2)
    assert get_loss("hinge2", beta=2.0).name == "hinge2(beta=2)"
    assert get_loss(hinge2).entry is LOSSES["hinge2"]


def test_an_object_with_call():
    class Scaled:
        needs = ()

        def __call__(self, pairs: Pairs, *, scale: float = 1.0):
            return scale * pairs.chosen.logp()

    torch.testing.assert_close(get_loss(Scaled(), scale="2")(PAIRS), 2 * PAIRS.chosen.logp())


def test_sum():
    loss = get_loss("dpo(beta=0.2) + 0.5*sft - 2*ipo")
    assert isinstance(loss, LossSum)
    assert loss.name == "dpo(beta=0.2) + 0.5*sft + -2*ipo"
    assert get_loss(loss.name).name == loss.name
    terms = [(weight, term.name) for weight, term in loss.terms]
    assert terms == [(1, "dpo(beta=0.2)"), (0.5, "sft"), (-2, "ipo")]
    assert loss.needs == ("ref_logps",)
    nll = -PAIRS.chosen.logps.sum() / PAIRS.chosen.mask.sum()
    expected = get_loss("dpo(beta=0.2)")(PAIRS).mean() + 0.5 * nll - 2 * get_loss("ipo")(PAIRS).mean()
    torch.testing.assert_close(loss(PAIRS).mean(), expected)
    metrics = loss.evaluate(PAIRS).metrics
    assert set(metrics) == {"dpo(beta=0.2)/margin", "ipo/margin"}
    torch.testing.assert_close(metrics["ipo/margin"], get_loss("ipo").evaluate(PAIRS).metrics["margin"])


def test_sum_builds_its_terms():
    loss = get_loss("dpo + 0.1*tbpo_q")
    assert loss.has_parameters
    loss.build(7)
    assert loss.learning_rate == 1e-3
    assert len(list(loss.parameters())) == 4


def test_names_tell_losses_apart():
    assert get_loss("dpo", beta=0.1000001).name == "dpo(beta=0.1000001)"
    assert get_loss("dpo", beta=0.1).name == "dpo"
    assert get_loss("bpo", clip=[0.01, None]).name == "bpo(clip=(0.01, None))"
    assert get_loss(get_loss("bpo", clip=[0.01, None]).name).params["clip"] == (0.01, None)


@pytest.mark.parametrize(
    ("spec", "needs"),
    [
        ("tbpo_a", ("ref_logps", "kl_ref_pi")),
        ("tbpo_a(kl=k3)", ("ref_logps",)),
        ("bpo(ratio=simpo)", ()),
        ("bpo(ratio=js)", ("ref_logps",)),
        ("twdpo", ("ref_logps", "weights")),
        ("twdpo(kl=0.5)", ("ref_logps", "weights", "kl_pi_ref")),
        ("wpo", ("ref_logps", "log_p2")),
        ("wpo(base=simpo, beta=2)", ("log_p2",)),
        ("wpo(base=tdpo1)", ("ref_logps", "kl_ref_pi", "log_p2")),
    ],
)
def test_needs_follow_the_hyper_parameters(spec, needs):
    assert get_loss(spec).needs == needs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: get_loss("tbpoa"), r"no loss 'tbpoa'. Did you mean 'tbpo_a'.*Registered: adadpo, .*wpo"),
        (lambda: get_loss("dpo + 0.2*sftt"), "Did you mean 'sft'"),
        (lambda: get_loss("dpo", betta=1), r"no hyper-parameter 'betta'. It has: beta, label_smoothing"),
        (lambda: get_loss("sft", beta=1), r"'sft' has no hyper-parameter 'beta'. It has none"),
        (lambda: get_loss("dpo", beta=0), r"beta=0 of the loss 'dpo': Input should be greater than 0"),
        (lambda: get_loss("dpo", beta=-0.1), "greater than 0"),
        (lambda: get_loss("dpo", beta=float("nan")), "beta=nan of the loss 'dpo'"),
        (
            lambda: get_loss("dpo", beta=[1, 2]),
            r"valid number\. Several values are a grid: {dpo: {grid: {beta: \[1, 2\]}}}\.",
        ),
        (lambda: get_loss("dpo", beta="big"), "beta='big' of the loss 'dpo': .*valid number"),
        (lambda: get_loss("dpo", label_smoothing=0.5), "label_smoothing=0.5 .*less than 0.5"),
        (lambda: get_loss("dpo", label_smoothing=-0.1), "label_smoothing=-0.1 .*greater than or equal to 0"),
        (lambda: get_loss("ipo", reduction="max"), "reduction='max' of the loss 'ipo': .*'mean' or 'sum'"),
        (lambda: get_loss("tbpo_a", kl="k2"), "'full', 'k3' or 'none'"),
        (lambda: get_loss("bpo", alpha=0.3), "alpha=0.3 has no effect with ratio='dpo': it belongs to 'alpha'"),
        (lambda: get_loss("bpo", gamma_beta_ratio=0.3), "gamma_beta_ratio=0.3 has no effect with ratio='dpo'"),
        (lambda: get_loss("bpo", ratio="kl"), "ratio='kl' of the loss 'bpo'"),
        (lambda: get_loss("f_dpo", alpha=0.3), "alpha=0.3 has no effect with divergence='js'"),
        (lambda: get_loss("simpo", loss_type="hinge", label_smoothing=0.1), "no effect with loss_type='hinge'"),
        (lambda: get_loss("twdpo", kl=0.3, loss_type="ipo"), "kl=0.3 has no effect with loss_type='ipo'"),
        (lambda: get_loss("exo_pair", label_smoothing=0), "greater than 0"),
        (lambda: get_loss("robust", label_smoothing=0.5), "less than 0.5"),
        (lambda: get_loss("ld_dpo", alpha=1.1), "less than or equal to 1"),
        (lambda: get_loss("dpop", lam=-1), "greater than or equal to 0"),
        (lambda: get_loss("sepo", k=0), "k=0 of the loss 'sepo': .*greater than 0"),
        (lambda: get_loss("sepo", k_rejected=1.5), "less than or equal to 1"),
        (lambda: get_loss("twdpo", loss_type="hinge"), "'sigmoid' or 'ipo'"),
        (lambda: get_loss("wpo", base="sft"), "'wpo': base='sft' must be one loss of level 'pair' with a beta"),
        (lambda: get_loss("wpo", base="aot"), "base='aot' must be one loss of level 'pair'"),
        (lambda: get_loss("wpo", base="tbpo_q"), "base='tbpo_q' must be .*no parameters of its own"),
        (lambda: get_loss("wpo", base="dpo + ipo"), "base='dpo \\+ ipo' must be one loss"),
        (lambda: get_loss("wpo", base="dpo(beta=0.3)"), "set beta separately"),
        (lambda: get_loss("wpo", cap=0), "cap=0 of the loss 'wpo': .*greater than 0"),
        (lambda: get_loss("tbpo_q", center=False, max_log_w=5), "max_log_w=5.0 has no effect with center=False"),
        (lambda: get_loss("wpo", base="dop"), "'wpo': There is no loss 'dop'"),
        (lambda: get_loss("dpo +"), "Cannot read the loss 'dpo \\+'"),
        (lambda: get_loss("2*3"), "is not a term"),
        (lambda: get_loss("dpo(0.2)"), "is not name or name"),
        (lambda: get_loss("dpo(beta=x + 1)"), "'x \\+ 1' is not a value for 'beta'"),
        (lambda: get_loss("dpo + sft", beta=0.2), "belong to its terms"),
        (lambda: get_loss(get_loss("dpo"), beta=0.2), "configured already"),
        (lambda: get_loss({"dpo": {}, "sft": {}}), "Cannot make a loss of"),
        (lambda: get_loss(3), "Cannot make a loss of 3"),
        (lambda: register_loss("x", level="word"), "level='word' of the loss 'x'"),
    ],
)
def test_mistakes_name_the_thing_and_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_loss_without_a_default_asks_for_the_value():
    def weighted(pairs: Pairs, *, weight: float):
        return weight * pairs.chosen.logp()

    with pytest.raises(LossError, match="needs a value for 'weight'"):
        get_loss(weighted)


def test_a_wrong_shape_is_named_with_where_it_came_from():
    @register_loss("wrong")
    def wrong(pairs: Pairs):
        return pairs.chosen.logps

    message = r"'wrong' \(.*test_registry.py:\d+\) .*one tensor \(pairs,\) of shape \(4,\)"
    with pytest.raises(LossError, match=message):
        get_loss("wrong")(PAIRS)


def test_a_check_runs_when_the_loss_is_configured():
    def check(low, high):
        if low >= high:
            raise ValueError(f"low={low} must be below high={high}.")

    @register_loss("between", check=check)
    def between(pairs: Pairs, *, low: float = 0.0, high: float = 1.0, other: str = ""):
        return pairs.chosen.logp().clamp(low, high)

    assert isinstance(get_loss("between", low=0.5), Loss)
    with pytest.raises(LossError, match=r"'between': low=2.0 must be below high=1.0"):
        get_loss("between", low=2)


def test_an_alias_is_the_entry_itself():
    assert LOSSES["sigmoid"] is LOSSES["dpo"]
    assert get_loss("sigmoid", beta=0.2).name == "dpo(beta=0.2)"
    assert get_loss("sigmoid + 0.2*sft").name == "dpo + 0.2*sft"
    assert [entry.name for entry in LOSSES].count("dpo") == 1
    assert "sigmoid" in LOSSES and "sigmoid" not in [entry.name for entry in LOSSES]
    assert LOSSES.aliases("dpo") == ["sigmoid"] and LOSSES.aliases("ipo") == []
    with pytest.raises(RegistryError, match="Did you mean 'sigmoid'"):
        LOSSES["sigmoidd"]


def test_a_statistic_or_column_that_was_not_asked_for():
    @register_loss("greedy", needs=("ref_logps",))
    def greedy(pairs: Pairs, *, column: bool = False):
        return pairs.columns["gap"] if column else pairs.chosen.kl_ref_pi.sum(-1)

    with pytest.raises(MissingStatistic, match=r"'kl_ref_pi' is missing: name it in the loss's needs"):
        get_loss("greedy")(PAIRS)
    with pytest.raises(MissingStatistic, match=r"needs=\('column:gap'"):
        get_loss("greedy", column=True)(PAIRS)


@pytest.mark.parametrize("spec", ["bnf", "dpo + 0.1*bnf", "bnf(beta=0.1)", "ti_dpo", "ti-dpo", "tidpo"])
def test_what_is_left_out_says_why(spec):
    with pytest.raises(RegistryError, match="(BNF|TI-DPO) is not here: .* Registered: .*dpo"):
        get_loss(spec)


def test_an_absent_loss_may_be_registered():
    register_loss("ti_dpo")(lambda pairs: pairs.chosen.logp())
    assert get_loss("ti_dpo").name == "ti_dpo"


@pytest.mark.parametrize(
    ("spec", "spelt_out"),
    [
        ("bpo(preset=hh)", "bpo(lam=1.2, clip=(0.01, None))"),
        ({"bpo": {"preset": "hh"}}, "bpo(lam=1.2, clip=(0.01, None))"),
        ("bpo(preset=hh, beta=0.2)", "bpo(beta=0.2, lam=1.2, clip=(0.01, None))"),
        ("bpo(preset=hh, lam=0.5)", "bpo(lam=0.5, clip=(0.01, None))"),
        ("bpo(preset=tldr)", "bpo(beta=0.5, lam=-0.5, clip=(0.025, None))"),
        (
            "bpo(preset=llama3)",
            "0.05*bpo(ratio=simpo, beta=2, clip=(0.01, 100)) + 0.95*bpo(ratio=simpo, beta=2, generator=lr)",
        ),
        (
            "2*bpo(preset=llama3, beta=10, gamma_beta_ratio=0.3) + sft",
            "0.1*bpo(ratio=simpo, beta=10, gamma_beta_ratio=0.3, clip=(0.01, 100)) "
            "+ 1.9*bpo(ratio=simpo, beta=10, gamma_beta_ratio=0.3, generator=lr) + sft",
        ),
    ],
)
def test_a_preset_is_the_loss_that_it_stands_for(spec, spelt_out):
    loss, expected = get_loss(spec), get_loss(spelt_out)
    assert loss.name == expected.name == get_loss(loss.name).name
    assert [weight for weight, _ in loss.terms] == pytest.approx([weight for weight, _ in expected.terms])
    torch.testing.assert_close(loss(PAIRS), expected(PAIRS))


def test_a_preset_that_there_is_not():
    with pytest.raises(LossError, match="preset='imdb' of the loss 'bpo' must be one of hh, tldr, llama3"):
        get_loss("bpo", preset="imdb")
    with pytest.raises(LossError, match="no hyper-parameter 'preset'"):
        get_loss("dpo", preset="hh")
    assert get_loss("bpo", preset=None).name == "bpo"


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("wpo", {"beta": 0.01, "cap": 1.0}),  # training_configs/*.yaml and scripts/run_wpo.py of its authors
        ("nca_pair", {"beta": 0.01}),  # yamls/preference_qlora.yaml
        ("sppo_hard", {"beta": 0.001}),  # scripts/pipeline.sh
        ("exo_pair", {"beta": 0.5, "label_smoothing": 4.5399929762484854e-05}),  # exp/hh_exp, loss.py: e^-10
        ("discopop", {"beta": 0.05, "tau": 0.05}),  # recipes/zephyr-7b-gemma/gpo
        ("tbpo_q", {"beta": 0.1, "center": True, "max_log_w": 10.0}),
    ],
)
def test_defaults_are_the_authors(name, defaults):
    params = get_loss(name).params
    assert {key: params[key] for key in defaults} == defaults


def test_names_with_wildcards():
    assert LOSSES.names("*dpo*") == [n for n in LOSSES.names() if "dpo" in n]  # r_dpo is length_dpo
    assert {"dpo", "f_dpo", "twdpo"} <= set(LOSSES.names("*dpo*")) and "ipo" not in LOSSES.names("*dpo*")
    assert LOSSES.names("sigmoid") == ["dpo"] and LOSSES.names("slic*") == [
        "hinge"
    ]  # by an alias, the entry's own name
    assert LOSSES.names() == [entry.name for entry in LOSSES] and LOSSES.names("nothing*") == []


def test_facts_are_typed():
    facts = LOSSES["aot"].facts
    assert (facts.level, facts.scorer, facts.target_margin) == ("batch", "uniform", None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.level = "pair"
    plain = Registry("thing")
    plain.register("x", object())
    assert plain["x"].facts == NoFacts()
