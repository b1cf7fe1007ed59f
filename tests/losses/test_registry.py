"""How a loss is named, configured, registered, and what goes wrong by name."""

import functools
import importlib.metadata
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import types

import pytest
import torch
from tester import make_pairs, make_statistics

from plo.backbone.statistics import register_statistic
from plo.losses import (
    GENERATORS,
    LOSSES,
    Loss,
    LossError,
    LossSum,
    get_loss,
    register_generator,
    register_loss,
)
from plo.losses.dpo import dpo
from plo.pairs import MissingStatistic, Pairs
from plo.registry import Registry, RegistryError, load_plugin
from plo.scorers import register_scorer

PAIRS = make_pairs(make_statistics(("ref_logps", "kl_ref_pi")), ("ref_logps", "column:gap"))


@pytest.fixture(autouse=True)
def _registrations_end_with_the_test():
    before = dict(LOSSES._entries), dict(GENERATORS._entries), dict(LOSSES._aliases)
    yield
    LOSSES._entries, GENERATORS._entries, LOSSES._aliases = before


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
        (lambda: get_loss("tbpoa"), r"no loss 'tbpoa'. Did you mean 'tbpo_a'.*Registered: alphapo, .*dpo"),
        (lambda: get_loss("dpo + 0.2*sftt"), "Did you mean 'sft'"),
        (lambda: get_loss("dpo", betta=1), r"no hyper-parameter 'betta'. It has: beta, label_smoothing"),
        (lambda: get_loss("sft", beta=1), r"'sft' has no hyper-parameter 'beta'. It has none"),
        (lambda: get_loss("dpo", beta=0), r"beta=0 of the loss 'dpo': Input should be greater than 0"),
        (lambda: get_loss("dpo", beta=-0.1), "greater than 0"),
        (lambda: get_loss("dpo", beta=float("nan")), "beta=nan of the loss 'dpo'"),
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
        (lambda: get_loss("wpo", base="dpo(beta=0.3)"), "beta is set beside it"),
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


def test_duplicates_name_both_origins():
    @register_loss("twice")
    def first(pairs):
        return pairs.chosen.logp()

    here = r".*test_registry.py:\d+"
    with pytest.raises(RegistryError, match=rf"'twice' is registered twice: {here} and {here}"):

        @register_loss("twice")
        def second(pairs):
            return -pairs.chosen.logp()

    register_loss("twice", replace=True)(lambda pairs: -pairs.chosen.logp())
    torch.testing.assert_close(get_loss("twice")(PAIRS), -PAIRS.chosen.logp())
    with pytest.raises(RegistryError, match=rf"registered twice: .*generators.py:\d+ and {here}"):

        @register_generator("sba")
        def h(R):
            return R**2


def test_an_alias_is_the_entry_itself():
    assert LOSSES["sigmoid"] is LOSSES["dpo"]
    assert get_loss("sigmoid", beta=0.2).name == "dpo(beta=0.2)"
    assert get_loss("sigmoid + 0.2*sft").name == "dpo + 0.2*sft"
    assert [entry.name for entry in LOSSES].count("dpo") == 1
    assert "sigmoid" in LOSSES and "sigmoid" not in [entry.name for entry in LOSSES]
    assert LOSSES.aliases("dpo") == ["sigmoid"] and LOSSES.aliases("ipo") == []
    with pytest.raises(RegistryError, match="Did you mean 'sigmoid'"):
        LOSSES["sigmoidd"]


def test_an_alias_that_cannot_be():
    for taken in ("ipo", "sigmoid"):
        with pytest.raises(RegistryError, match=rf"'{taken}' is taken by .*\.py:\d+\): no alias of 'dpo'"):
            LOSSES.alias(taken, of="dpo")
    with pytest.raises(RegistryError, match="'better' cannot be an alias: there is no loss 'best'"):
        LOSSES.alias("better", of="best")
    with pytest.raises(RegistryError, match=r"'sigmoid' is registered twice: .*dpo.py:\d+ \(as an alias of 'dpo'\)"):
        register_loss("sigmoid")(lambda pairs: pairs.chosen.logp())
    register_loss("sigmoid", replace=True)(lambda pairs: pairs.chosen.logp())
    assert LOSSES["sigmoid"] is not LOSSES["dpo"]


def test_a_statistic_or_column_that_was_not_asked_for():
    @register_loss("greedy", needs=("ref_logps",))
    def greedy(pairs: Pairs, *, column: bool = False):
        return pairs.columns["gap"] if column else pairs.chosen.kl_ref_pi.sum(-1)

    with pytest.raises(MissingStatistic, match=r"'kl_ref_pi' is not here: name it in the loss's needs"):
        get_loss("greedy")(PAIRS)
    with pytest.raises(MissingStatistic, match=r"needs=\('column:gap'"):
        get_loss("greedy", column=True)(PAIRS)


PLUGIN = """
from plo.losses import register_generator, register_loss

@register_generator("cubic")
def cubic(R):
    return R**3

@register_loss("margin_only", needs=("ref_logps", "column:gap"))
def margin_only(pairs, *, scale: float = 1.0):
    return -scale * pairs.log_ratio_margin() * pairs.columns["gap"]
"""


def test_load_plugin(tmp_path):
    path = tmp_path / "my_loss.py"
    path.write_text(PLUGIN)
    load_plugin(path)
    load_plugin(path)  # the second time does nothing, instead of registering twice
    expected = -2 * PAIRS.log_ratio_margin() * PAIRS.columns["gap"]
    torch.testing.assert_close(get_loss("margin_only", scale=2)(PAIRS), expected)
    assert LOSSES["margin_only"].origin == f"{path}:8"
    assert get_loss("bpo", generator="cubic")(PAIRS).shape == (4,)


def test_what_a_plugin_defines_can_be_pickled_to_another_process(tmp_path):
    """Strings are hashed anew in each process: the module's name may not depend on that."""
    path = tmp_path / "my-loss.v2.py"  # no identifier
    path.write_text(PLUGIN)
    module = load_plugin(path)
    (tmp_path / "value.pickle").write_bytes(pickle.dumps([module.margin_only, get_loss("margin_only", scale=2)]))
    code = "import pickle, sys, plo.registry as r; path, own = sys.argv[1:]; own and r.load_plugin(own)\n"
    code += "plain, loss = pickle.load(open(path, 'rb')); print(plain.__name__, loss.name, plain is loss.target)"
    for environment, own in (({"PLO_PLUGINS": os.environ["PLO_PLUGINS"]}, ""), ({"PLO_PLUGINS": ""}, str(path))):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "value.pickle"), own],
            env={**os.environ, "PYTHONHASHSEED": "1", **environment},
            capture_output=True,
            text=True,
        )
        assert done.stdout == "margin_only margin_only(scale=2) True\n", done.stderr
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_name_of, [get_loss("margin_only", scale=2)]) == "margin_only(scale=2)"


def _name_of(loss):
    return loss.name


def test_load_plugin_failures(tmp_path):
    with pytest.raises(RegistryError, match=r"nowhere.py does not exist"):
        load_plugin(tmp_path / "nowhere.py")
    path = tmp_path / "broken.py"
    path.write_text("1 / 0")
    with pytest.raises(RegistryError, match=r"broken.py failed: ZeroDivisionError"):
        load_plugin(path)


@pytest.fixture
def installed(monkeypatch):
    """Entry points as an installed package would declare them."""

    def declare(group, **targets):
        points = [importlib.metadata.EntryPoint(name, value, group) for name, value in targets.items()]
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda group=None: [p for p in points if p.group == group]
        )

    return declare


def test_entry_points_are_loaded_at_the_first_look_up(installed, monkeypatch):
    registry = Registry("loss", group="plo.losses")
    package = types.ModuleType("elsewhere")
    package.loss = dpo
    # loading the entry point's attribute is what registers
    package.__getattr__ = lambda name: registry.register("theirs", "elsewhere:loss")
    monkeypatch.setitem(sys.modules, "elsewhere", package)
    installed("plo.losses", theirs="elsewhere:plug_in")
    assert not registry._entries
    assert registry["theirs"].load() is dpo
    assert registry["theirs"].origin == "elsewhere:loss"


def test_an_installed_package_may_import_plo(tmp_path):
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[plo.losses]\ntheirs = theirs:loss\n")
    own = "from plo import register_loss\n@register_loss('theirs')\ndef loss(pairs): return pairs.chosen.logp()\n"
    (tmp_path / "theirs.py").write_text(own)
    for first in ("import plo", "import plo.scorers", "from plo.losses import recipes"):  # recipes look losses up early
        code = f"{first}\nfrom plo import get_loss\nprint(get_loss('theirs').name)"
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
        assert done.stdout == "theirs\n", done.stderr


@pytest.mark.parametrize("spec", ["kto", "KTO", "kto(beta=0.1)", "dpo + 0.1*kto", "ti_dpo", "ti-dpo", "tidpo"])
def test_what_is_left_out_says_why(spec):
    with pytest.raises(RegistryError, match="(KTO|TI-DPO) is not here: .* Registered: .*dpo"):
        get_loss(spec)


def test_an_absent_loss_may_be_registered():
    register_loss("kto")(lambda pairs: pairs.chosen.logp())
    assert get_loss("kto").name == "kto"


def test_an_entry_point_that_fails_is_named(installed):
    registry = Registry("loss", group="plo.losses")
    installed("plo.losses", theirs="no_such_package:loss")
    message = r"'theirs' \(no_such_package:loss\).*ModuleNotFoundError.*uninstall"
    with pytest.raises(RegistryError, match=message):
        registry["dpo"]


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
        ("attention_po", {"beta": 0.005}),
    ],
)
def test_defaults_are_the_authors(name, defaults):
    params = get_loss(name).params
    assert {key: params[key] for key in defaults} == defaults


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("my loss", "my_loss"),
        ("dpo-2", "dpo_2"),
        ("a+b", "a_b"),
        ("2dpo", "my_2dpo"),
        ("", "my"),
        ("lambda", "my_lambda"),
    ],
)
@pytest.mark.parametrize("register", [register_loss, register_generator, register_scorer], ids=lambda r: r.__name__)
def test_a_name_that_could_not_be_written_is_refused(register, name, better):
    with pytest.raises(RegistryError, match=re.escape(f"{name!r} cannot be the name of a")) as refused:
        register(name)(lambda given: given)
    assert f"such as {better!r}" in str(refused.value)


@pytest.mark.parametrize(
    "register", [register_loss, register_generator, register_scorer, register_statistic], ids=lambda r: r.__name__
)
def test_a_decorator_without_brackets_is_refused(register):
    """It would register nothing, and say nothing."""
    with pytest.raises(RegistryError, match=r"test_registry.py.* without a name: .*\(\"mine\"\)"):

        @register
        def mine(given):
            return given


def test_an_alias_that_could_not_be_written_is_refused():
    with pytest.raises(RegistryError, match="'d p o' cannot be the name of a loss"):
        LOSSES.alias("d p o", of="dpo")


@pytest.mark.parametrize(
    ("register", "given"), [(register_loss, "pairs"), (register_generator, "R"), (register_scorer, "material")]
)
def test_hyper_parameters_by_position_are_refused(register, given):
    with pytest.raises(
        RegistryError, match=rf"takes beta, other by position.*write a \* before them, \({given}, \*, beta="
    ):
        register("by_position")(lambda given, beta=0.1, other=2: given)
    with pytest.raises(RegistryError, match=f"takes no argument: it is called with {given}"):
        register("by_position")(lambda: None)


def test_hyper_parameters_by_position_of_a_module_and_of_a_plain_function():
    class Own(torch.nn.Module):
        def __init__(self, hidden_size, width=3):
            super().__init__()

    with pytest.raises(RegistryError, match=r"takes width by position.*\(hidden_size, \*, width="):
        register_loss("own")(Own)

    def plain(pairs, beta=0.1):
        return beta * pairs.chosen.logp()

    with pytest.raises(RegistryError, match="'plain' .* takes beta by position"):
        get_loss(plain)


@pytest.mark.parametrize("fact", ["needs", "detached", "against"])
def test_a_text_where_a_tuple_belongs_is_refused(fact):
    with pytest.raises(
        LossError, match=rf"{fact}='chosen' of the loss 'x' must be a tuple of names: {fact}=\('chosen',\)"
    ):
        register_loss("x", **{fact: "chosen"})
    register_loss("x", **{fact: lambda: "chosen"})(lambda pairs: pairs.chosen.logp())
    with pytest.raises(LossError, match="must be a tuple"):
        get_loss("x")


def test_a_side_that_there_is_not():
    with pytest.raises(LossError, match="'winner' is neither 'chosen' nor 'rejected'"):
        register_loss("x", against=("winner",))
