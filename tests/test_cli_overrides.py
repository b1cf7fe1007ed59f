"""KEY=VALUE on the command line: settings and hyper-parameters reach what they name, and remedies of messages work."""

from pathlib import Path

import pytest

from plo.cli.overrides import sort_settings, split, with_hyper_parameters
from plo.config import ConfigError, Experiment, load_experiment
from plo.errors import PloError
from plo.experiment.preflight import configured_variants
from plo.losses import LOSSES
from plo.near import near
from plo.scorers import RECIPES, get_variant
from plo.section import fields
from plo.values import read_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.2", 0.2),
        ("1e-4", 1e-4),
        ("5", 5),
        ("true", True),
        ("[0, 1]", [0, 1]),
        ("hh", "hh"),
        ("none", "none"),
        ("", None),
        ("{lr: 1e-4, steps: 5}", {"lr": 1e-4, "steps": 5}),
    ],
)
def test_values_on_the_command_line(text, value):
    assert read_value(text) == value


def test_settings_go_where_they_belong():
    known, hyper = sort_settings({"lr": 1, "train.batch_size": 2, "data": "hh", "beta": 0.2, "dpo.beta": 0.3})
    assert known == {"train.lr": 1, "train.batch_size": 2, "data": "hh"}
    assert hyper == {"beta": 0.2, "dpo.beta": 0.3}


def test_settings_inside_a_mapping_go_to_the_experiment():
    settings = {"sft.lr": 1e-4, "data.options.chat": True, "evaluation.judge": {"hf:embedded": {}}}
    assert sort_settings(settings) == (settings, {})
    experiment = load_experiment(None, {"losses": "dpo", "stages": "sft,preference", **settings})
    assert (experiment.sft, experiment.data.options) == ({"lr": 1e-4}, {"chat": True})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seeds", (0, 1)),
        ("losses", ("dpo", "bpo(lam=0.5, s=2)")),
        ("stages", ("sft", "preference")),
        ("eval_at", (0.5, 1.0)),
        ("plugins", (Path("a.py"), Path("b.py"))),
        ("evaluation.suite", ("repetition", "hh")),
        ("model.lora_targets", ["q_proj", "v_proj"]),
    ],
)
def test_lists_with_commas(setting, value):
    text = ", ".join(map(str, value))
    section = load_experiment(None, {"losses": "dpo", setting: text})
    for part in setting.split("."):
        section = getattr(section, part)
    assert section == value


def test_a_hyper_parameter_reaches_every_loss_that_has_it_or_the_one_named():
    experiment = load_experiment(None, {"losses": ["dpo", "sft", {"bpo": {"lam": 0.5}}]})
    losses = with_hyper_parameters(experiment, {"dpo.beta": 0.3, "beta": 0.2}).losses
    assert losses == ("dpo(beta=0.3)", "sft", "bpo(beta=0.2, lam=0.5)")
    losses = with_hyper_parameters(load_experiment(None, {"losses": ["sigmoid"]}), {"sigmoid.beta": 0.3}).losses
    assert losses == ("dpo(beta=0.3)",)
    with pytest.raises(ConfigError, match=r"gamma=1: neither a setting .* dpo: beta, label_smoothing"):
        with_hyper_parameters(experiment, {"gamma": 1})


@pytest.mark.parametrize(
    ("losses", "hyper", "changed"),
    [
        ("twdpo", {"beta": 0.2}, "twdpo(beta=0.2)"),
        ("sepo", {"sepo.gamma": 2}, "sepo(gamma=2)"),
        ("twdpo", {"scorer": "uniform"}, "twdpo"),
        ("twdpo", {"scorer": "position_decay", "scorer.gamma": 0.5}, "twdpo(scorer=position_decay(gamma=0.5))"),
        ({"twdpo": {"scorer": {"position_decay": {"gamma": 0.9}}}}, {"beta": 1}, None),
        ({"twdpo": {"scorer": "attention_judge"}}, {"twdpo.scorer.layer": "mean"}, None),
        ("d2po", {"gamma": 0.5, "beta": 0.2}, "d2po(gamma=0.5, beta=0.2)"),
        ("bpo", {"alpha": 0.3, "ratio": "alpha"}, "bpo(ratio=alpha, alpha=0.3)"),  # each alone would not fit
        ("dpo + 0.2*ipo", {"beta": 0.5}, "dpo(beta=0.5) + 0.2*ipo(beta=0.5)"),
        ("dpo + 0.2*ipo - 0.1*sft", {"ipo.beta": 0.5}, "dpo + 0.2*ipo(beta=0.5) + -0.1*sft"),
        ("bpo", {"bpo.preset": "hh"}, "bpo(lam=1.2, clip=(0.01, None))"),
        ("bpo(beta=0.3)", {"preset": "tldr", "lam": 0.5}, "bpo(beta=0.3, lam=0.5, clip=(0.025, None))"),
        (
            "2*bpo + sft",
            {"bpo.preset": "llama3", "beta": 1},
            "0.1*bpo(beta=1, clip=(0.01, 100.0), ratio=simpo) + 1.9*bpo(beta=1, generator=lr, ratio=simpo) + sft",
        ),
        ("bpo", {"clip": "(0.01, None)"}, "bpo(clip=(0.01, None))"),
        ("bpo", {"clip": "0.01,100"}, "bpo(clip=(0.01, 100.0))"),
        ("wpo", {"cap": "None"}, "wpo(cap=None)"),
        ("wpo(cap=null)", {"beta": 1}, "wpo(beta=1, cap=None)"),
    ],
)
def test_losses_with_scorers_recipes_and_sums_take_hyper_parameters(losses, hyper, changed):
    experiment = with_hyper_parameters(load_experiment(None, {"losses": [losses]}), hyper)
    (spec,) = experiment.losses
    if changed is None:  # what was set before stays
        changed = {
            "beta": "twdpo(scorer=position_decay(gamma=0.9), beta=1)",
            "twdpo.scorer.layer": "twdpo(scorer=attention_judge(layer=mean))",
        }[next(iter(hyper))]
    assert get_variant(spec).name == changed


def test_a_hyper_parameter_reaches_the_variants_of_the_example_with_token_weights():
    experiment = load_experiment(Path(__file__).parents[1] / "docs" / "token_level.yaml")
    losses = with_hyper_parameters(experiment, {"beta": 0.25}).losses
    assert [spec for spec in losses if "beta=0.25" not in spec] == [{"sepo": {"gamma": 2.0}}]  # it has no beta


def test_a_date_is_a_name(tmp_path):
    (tmp_path / "exp.yaml").write_text("{name: 2026-11-29, losses: dpo}")
    assert load_experiment(tmp_path / "exp.yaml").name == "2026-11-29"
    assert split(["name=2026-11-29"])[1] == {"name": "2026-11-29"}


OTHER = {  # a valid value that is not the default, where half of the default is none
    "generator": "kliep", "clip": (0.01, None), "ratio": "js", "divergence": "forward_kl", "reduction": "sum", "kl": "k3",
    "layer": "mean", "loss_type": "ipo", "base": "ipo(reduction=sum)", "model": "org/small", "transform": "binary",
    "gamma_beta_ratio": 0.25, "alpha": 0.3, "k_rejected": 0.2, "oracle_lr": 1e-5, "max_log_w": 3.0, "scorer": "position_decay",
    "share": 0.25, "segments": 4, "score": "score_chosen", "less": "score_rejected", "scale": "linear", "distance": "squared", "space": "policy",
}  # fmt: skip
WITH = {  # what else must be set for it to have an effect
    ("bpo", "alpha"): {"ratio": "alpha"},
    ("bpo", "gamma_beta_ratio"): {"ratio": "simpo"},
    ("f_dpo", "alpha"): {"divergence": "alpha"},
}


def _other(loss, name, default):
    if name == "loss_type" and loss == "simpo":
        return "hinge"
    if name == "kl" and loss != "tbpo_a":
        return 0.25
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float) and default:
        return default / 2
    return OTHER.get(name, 0.125)


@pytest.mark.parametrize("name", [*LOSSES.names(), *RECIPES.names()])
def test_every_hyper_parameter_of_every_loss_can_be_set_by_name(name):
    for parameter, default in get_variant(name).terms[0][1].settings.items():
        value = _other(name, parameter.removeprefix("scorer."), default)
        hyper = {f"{name}.{key}": v for key, v in {parameter: value, **WITH.get((name, parameter), {})}.items()}
        for losses in (name, f"sft + 0.5*{name}"):
            experiment = with_hyper_parameters(load_experiment(None, {"losses": [losses]}), hyper)
            (spec,) = experiment.losses
            settings = get_variant(spec).terms[-1][1].settings
            assert settings[parameter] == value != default
            own = {
                key: v
                for key, v in get_variant(name).params.items()
                if key != "scorer" and f"{name}.{key}" not in hyper
            }
            assert {key: settings[key] for key in own} == own  # the others stay as they were


@pytest.mark.parametrize(
    ("settings", "message", "remedy"),
    [
        ({"sft.lr": 1e-4}, r"stages: \[sft, preference\]", {"stages": ["sft", "preference"]}),
        ({"reference": "sft"}, r"stages: \[sft, preference\]", {"stages": ["sft", "preference"]}),
        ({"stages": "sft"}, r"write \[preference\] or \[sft, preference\]", {"stages": ["preference"]}),
        ({"stages": "sft"}, r"write \[preference\] or \[sft, preference\]", {"stages": ["sft", "preference"]}),
        (
            {"losses": None},
            r"e\.g\. 'losses: \[dpo, ipo\]'|losses: write at least one",
            {"losses": ["dpo", "ipo"]},
        ),
        ({"train.optimizer": "adamw"}, "similar ones: adamw_torch", {"train.optimizer": "adamw_torch"}),
        ({"train.schedule": "cos"}, "similar ones: cosine", {"train.schedule": "cosine"}),
        ({"train.batch_size": 9, "train.micro_batch_size": 2}, "not a multiple", {"train.batch_size": 8}),
        ({"evaluation.judge_money": -1}, "greater than 0", {"evaluation.judge_money": 1}),
        ({"losses": "dpo + "}, "'dpo \\+ 0.2\\*sft'", {"losses": "dpo + 0.2*sft"}),
        ({"losses": "dpo,dpo"}, "each variant once", {"losses": "dpo"}),
        (
            {"losses": [{"dpo": {}, "ipo": {}}]},
            "write {'name': 'dpo', 'beta': 0.2}",
            {"losses": [{"name": "dpo", "beta": 0.2}]},
        ),
        ({"losses": "bpo(alpha=0.3)"}, "it belongs to 'alpha'", {"losses": "bpo(alpha=0.3, ratio=alpha)"}),
        ({"losses": "wpo(base=dpo(beta=0.3))"}, r"wpo\(base=..., beta=...\)", {"losses": "wpo(base=dpo, beta=0.3)"}),
        ({"losses": "bpo(generator=ba, lam=-2)"}, "sba takes any", {"losses": "bpo(generator=sba, lam=-2)"}),
        ({"losses": "dpo(0.2)"}, r"name\(key=value, ...\)", {"losses": "dpo(beta=0.2)"}),
    ],
)
def test_the_remedy_of_a_message_works(settings, message, remedy):
    """What a message says to write is written; then the experiment is accepted."""

    def accepted(changes):
        configured_variants(load_experiment(None, {"losses": "dpo", **changes}))

    with pytest.raises(PloError, match=message):
        accepted(settings)
    accepted({**settings, **remedy})


@pytest.mark.parametrize(
    "key", ["train.learning_rate", "batch", "lossess", "max_len", "num_train_epochs", "eval_pairs"]
)
def test_a_near_name_is_a_setting(key):
    assert near(key, fields(Experiment)) and set(near(key, fields(Experiment))) <= set(fields(Experiment))
