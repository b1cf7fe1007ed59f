"""`plo verify`: what it takes, prints and returns."""

import json

import pytest
import torch
from typer.testing import CliRunner

from plo.cli import app
from plo.losses import LOSSES, LossError, get_loss, register_loss
from plo.scorers import RECIPES
from plo.verify import FAILED, NOT_APPLICABLE, PASSED, verify
from plo.verify.load import load_loss

runner = CliRunner()
PLUGIN = """
import torch
from plo import Pairs, register_generator, register_loss
from torch.nn.functional import logsigmoid

@register_loss("registered_name", needs=("ref_logps",), assumes="bradley_terry", replace=True)
def some_function(pairs: Pairs, *, beta: float = 0.25) -> torch.Tensor:
    return -logsigmoid(beta * pairs.log_ratio_margin())

def plain(pairs, *, beta: float = 0.1):
    return -logsigmoid(beta * pairs.log_ratio_margin())

def flipped(pairs, *, beta: float = 0.1):
    return -logsigmoid(-beta * pairs.log_ratio_margin())

def squared(pairs, *, beta: float = 0.1):
    return torch.relu(1 - beta * pairs.log_ratio_margin()).square()

def by_width(pairs, *, beta: float = 0.1):
    return -beta * pairs.log_ratio_margin() / pairs.chosen.mask.shape[1]

def dpo(pairs, *, beta: float = 0.1):
    return pairs.chosen.kl_ref_pi.sum(-1)

def square(R, *, p: float = 2.0):
    return R**p
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "my_file.py"
    path.write_text(PLUGIN)
    return str(path)


def ran(*arguments):
    result = runner.invoke(app, ["verify", *arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    "spec",
    ["dpo", "sft", "ipo", "simpo", "orpo", "tdpo1", "tdpo2", "tbpo_a", "bpo", "bpo(generator=lr)"]
    + [f"bpo(generator={name}, clip=(1e-9, 1e9))" for name in ("kliep", "lsif", "ba", "sba")]
    + ["tbpo_q(baseline_size=16)", "dpo + 0.2*sft", "0.05*bpo(clip=(0.01, 100)) + 0.95*bpo(generator=lr)"],
)
def test_built_in_losses_pass(spec):
    report = verify(get_loss(spec), labels=False)
    assert report.passed, [check for check in report.checks if check.result == FAILED]


def test_the_table(plugin):
    code, output = ran("dpo")
    assert code == 0
    for text in ("direction", "derivative", "policy recovery", "0.693147 = ln 2", "nats", "nothing failed", "labels"):
        assert text in output


def test_a_failure_says_where_and_the_remedy_and_exits_with_1(plugin):
    code, output = ran(f"{plugin}:by_width")
    assert code == 1
    text = " ".join(output.split())
    assert "where: pair" in text and "remedy:" in text and "failed: padding" in text


def test_json_of_one(plugin):
    code, output = ran(f"{plugin}:registered_name(beta=0.5)", "--json")
    assert code == 0
    (report,) = json.loads(output)
    assert report["loss"] == "registered_name(beta=0.5)" and report["passed"] is True
    checks = {check["name"]: check for check in report["checks"]}
    assert set(checks["derivative"]) == {"name", "result", "measured", "meaning", "where", "remedy", "values"}
    assert checks["policy recovery"]["result"] == PASSED and checks["policy recovery"]["values"]["kl"] < 1e-8


def test_a_function_of_a_file_by_its_own_name(plugin):
    assert load_loss(f"{plugin}:plain").name == "plain"
    assert load_loss(f"{plugin}:some_function").entry is LOSSES["registered_name"]
    assert load_loss(f"{plugin}:plain(beta=0.3)").params == {"beta": 0.3}
    assert load_loss(f"{plugin}:dpo").entry is not LOSSES["dpo"]  # the file's, not the built-in one
    register_loss("mine_too", needs=("ref_logps",))(lambda pairs: pairs.chosen.logp())
    with pytest.raises(LossError, match=r"my_file.py has no 'mine_too'. It has: by_width, dpo, flipped, plain"):
        load_loss(f"{plugin}:mine_too")


def test_plugin_and_name(plugin):
    code, output = ran("registered_name", "--plugin", plugin, "--json")
    assert code == 0 and json.loads(output)[0]["loss"] == "registered_name"


def test_a_loss_that_pulls_the_wrong_way_fails(plugin):
    code, output = ran(f"{plugin}:flipped")
    assert code == 1 and "failed: direction" in output
    check = next(c for c in json.loads(ran(f"{plugin}:flipped", "--json")[1])[0]["checks"] if c["name"] == "direction")
    assert check["measured"] == "0% falls in chosen, 0% rises in rejected" and "rises on 100%" in check["where"]
    assert "against=('chosen', 'rejected')" in check["remedy"]


def test_an_undeclared_loss_of_another_optimum_is_described(plugin):
    code, output = ran(f"{plugin}:squared", "--json")
    check = next(check for check in json.loads(output)[0]["checks"] if check["name"] == "policy recovery")
    assert code == 0 and check["result"] == "described" and "not recovered" in check["meaning"]


def test_generators(plugin):
    code, output = ran("--generator", "kliep")
    assert code == 0 and "kliep in bpo" in output and "h convex" in output
    code, output = ran("--generator", f"{plugin}:square(p=3.0)", "--json")
    assert code == 0 and json.loads(output)[0]["loss"] == "square(p=3.0) in bpo"
    code, output = ran("--generator", f"{plugin}:square(p=0.5)", "--json")  # a root is concave
    failed = [check["name"] for check in json.loads(output)[0]["checks"] if check["result"] == FAILED]
    assert code == 1 and "h convex" in failed
    code, output = ran("tbpo_a", "--generator", "sba(lam=0.5)", "--json")
    assert json.loads(output)[0]["loss"].startswith("tbpo_a(generator=")


def test_all(monkeypatch):
    """A row a loss, a line for each that does not pass. Three losses here: TBPO-Q alone takes seconds."""
    kept = {name: LOSSES[name] for name in ("dpo", "simpo")}
    monkeypatch.setattr(LOSSES, "_entries", kept)
    monkeypatch.setattr(RECIPES, "_entries", {})

    @register_loss("broken")
    def broken(pairs):
        raise RuntimeError("no such thing")

    code, output = ran("--all")
    text = " ".join(output.split())
    assert code == 1 and "3 losses, 1 failed" in text
    assert "simpo policy recovery does not apply: no reference" in text
    assert "broken call failed: RuntimeError" in text and "no such thing" in text
    assert len(json.loads(ran("--all", "--json")[1])) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dop"], "or 'dpo'"),
        (["dpo(betta=1)"], "no hyper-parameter 'betta'"),
        (["nowhere.py:mine"], "nowhere.py does not exist"),
        (["--generator", "sbaa"], "Did you mean 'sba'"),
        (["--generator", "sba(lamm=1)"], "no hyper-parameter 'lamm'"),
        (["dpo", "--generator", "sba"], "no hyper-parameter 'generator'"),
        ([], "give LOSS"),
        (["dpo", "--all"], "give LOSS"),
    ],
)
def test_a_loss_that_cannot_be_made_exits_with_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = ran(*arguments)
    assert code == 2, output
    assert message in " ".join(output.replace("│", " ").split())
    assert "Traceback" not in output


def test_a_statistic_that_was_not_asked_for_is_a_failure_with_its_line(plugin):
    report = verify(load_loss(f"{plugin}:dpo"))
    (check,) = report.checks
    assert check.result == FAILED and "kl_ref_pi" in check.where and check.measured == "MissingStatistic"


def test_a_statistic_of_ones_own_is_fed_but_not_recovered_from():
    @register_loss("with_own", needs=("ref_logps", "top_p"), assumes="bradley_terry")
    def with_own(pairs):
        return -torch.nn.functional.logsigmoid(pairs.log_ratio_margin() * pairs.chosen.mean(pairs.chosen.top_p))

    report = verify(get_loss("with_own"))
    assert report["derivative"].result == PASSED and "top_p" in report["derivative"].meaning
    assert report["policy recovery"].result == NOT_APPLICABLE and "top_p" in report["policy recovery"].meaning


@pytest.mark.parametrize("model", ["bradleyterry", "token"])
def test_a_misspelt_model_is_refused(model):
    with pytest.raises(LossError, match=f"assumes='{model}' .* must be one of bradley_terry"):
        register_loss("x", assumes=model)
