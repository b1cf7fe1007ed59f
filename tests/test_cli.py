"""The command line: lists for people and machines, settings that reach what they name, errors without tracebacks."""

import json
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from plo.cli import app
from plo.cli.lists import _show
from plo.cli.settings import _scalar, sort_settings, with_hyper_parameters
from plo.config import ConfigError, load_experiment

runner = CliRunner()
PLUGIN = """
import torch
from plo import Pairs, register_generator, register_loss
from plo.scorers import register_scorer

@register_loss("hinge_cli", needs=("ref_logps", "column:margin"), paper="mine", replace=True)
def hinge_cli(pairs: Pairs, *, beta: float = 0.25) -> torch.Tensor:
    return torch.relu(1 - beta * pairs.log_ratio_margin())

@register_generator("square_cli", replace=True)
def square_cli(R, *, p: float = 2.0):
    return R**p

@register_scorer("first_cli", paper="mine", replace=True)
def first_cli(material, *, share: float = 0.5):
    yield from ()
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return str(path)


def listed(*arguments):
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return {entry["name"]: entry for entry in json.loads(result.output)}


def test_help_answers_before_torch_is_loaded():
    code = "import sys; from plo.cli import app; sys.argv = ['plo', '--help']\ntry: app()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'transformers', 'pandas', 'mlflow'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "leaderboard" in done.stdout and done.stdout.splitlines()[-1] == "[]"


def test_losses_as_json(plugin):
    losses = listed("losses", "--plugin", plugin)
    keys = {"name", "aliases", "recipe", "needs", "level", "paper", "defaults", "origin"}
    assert all(set(e) == keys for e in losses.values())
    assert losses["dpo"]["aliases"] == ["sigmoid"] and "sigmoid" not in losses
    assert losses["dpo"]["defaults"] == {"beta": 0.1, "label_smoothing": 0.0}
    assert losses["tbpo_a"]["needs"] == ["ref_logps", "kl_ref_pi"]
    assert losses["sft"]["level"] == "token" and losses["dpo"]["paper"] == "2305.18290"
    d2po = losses["d2po"]
    assert (d2po["recipe"], losses["dpo"]["recipe"]) == ("twdpo + position_decay", "")
    assert (
        d2po["defaults"] == {"gamma": 0.98, "beta": 0.1, "loss_type": "sigmoid", "kl": 0.0}
        and "simple.py:" in d2po["origin"]
    )
    mine = losses["hinge_cli"]
    assert mine["needs"] == ["ref_logps", "column:margin"] and mine["origin"].endswith("mine.py:6")


def test_generators_as_json(plugin):
    generators = listed("generators", "--plugin", plugin)
    assert {"lr", "kliep", "lsif", "ba", "sba"} <= generators.keys()
    assert generators["square_cli"]["defaults"] == {"p": 2.0}


def test_scorers_as_json(plugin):
    scorers = listed("scorers", "--plugin", plugin)
    assert {"uniform", "position_decay", "subsample", "log_ratio", "tis_rank", "attention_judge"} <= scorers.keys()
    keys = {"name", "trains", "reads", "paper", "defaults", "origin"}
    assert all(set(entry) == keys and entry["paper"] for entry in scorers.values() if "tests" not in entry["origin"])
    assert scorers["tis_rank"]["trains"] == ["positive: dpo", "negative: dpo on reversed pairs"]
    assert scorers["subsample"]["reads"] == ["seed"]
    assert scorers["attention_judge"]["reads"] == ["texts", "model"]
    assert scorers["first_cli"]["defaults"] == {"share": 0.5}


def test_lists_for_people():
    result = runner.invoke(app, ["losses"])
    assert result.exit_code == 0 and "tdpo2" in result.output and "label_smoothing" in result.output
    lines = [line.split("  ")[0].strip() for line in result.output.splitlines()]
    assert lines[lines.index("dpo") + 1] == "= sigmoid"  # in the name cell, under the name
    losses, recipes = result.output.split("Recipes: a loss whose token weights a scorer makes.")
    assert "tis_dpo" in recipes and "tis_dpo" not in losses and "simpo" in losses
    result = runner.invoke(app, ["scorers"])
    assert result.exit_code == 0 and "tis_rank" in result.output


@pytest.mark.parametrize("width", [50, 80, 160])
def test_a_name_or_default_may_fold_but_is_never_cut(width, monkeypatch, capsys):
    monkeypatch.setattr("plo.cli.lists.console", Console(width=width))
    row = {"name": "q" * 45, "level": "model", "defaults": {"x": "7" * 90, "y": "[zz]"}, "origin": "file.py:1"}
    _show([{**row, "name": "short", "defaults": {}}, row], False, "evaluation")
    shown = capsys.readouterr().out
    assert (shown.count("q"), shown.count("7")) == (45, 90) and "y=[zz]" in shown
    assert max(map(len, shown.splitlines())) <= width


@pytest.fixture
def scores_of(monkeypatch):
    """The engine's part: it is asked for pairs, and here gives one made by hand, each token's weight its number."""
    import plo.experiment.workbench
    from plo.data import Pair

    asked = []

    def score_pairs(experiment, scorer, console):
        asked.append((experiment, scorer))
        pair = Pair((3,), (0, 1), (1,), "two words", "row 1", {})
        return [(pair, (torch.tensor([1.0, 2.0]), torch.tensor([3.0])))] * 3, Words()

    monkeypatch.setattr(plo.experiment.workbench, "score_pairs", score_pairs)
    return asked


class Words:
    def decode(self, ids, **_):
        return "".join([" yes", "<no>"][i] for i in ids)


def test_scores_are_shown(scores_of, tmp_path):
    result = runner.invoke(app, ["scores", "position_decay", "gamma=0.5", "data.limit=7", "--pairs", "2"])
    assert result.exit_code == 0, result.output
    assert all(text in result.output for text in ("row 1: chosen", "·yes", "<no>", "2.000", "3.000"))
    (experiment, scorer) = scores_of[0]
    assert (experiment.data.limit, scorer.name) == (7, "position_decay(gamma=0.5)")
    assert result.output.count("row 1: chosen") == 2
    page = tmp_path / "a" / "page.html"
    result = runner.invoke(app, ["scores", "uniform", "--html", str(page)])
    assert result.exit_code == 0 and "&lt;no&gt;" in page.read_text()


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
    ],
)
def test_values_on_the_command_line(text, value):
    assert _scalar(text) == value


def test_settings_go_where_they_belong():
    known, hyper = sort_settings({"lr": 1, "train.batch_size": 2, "data": "hh", "beta": 0.2, "dpo.beta": 0.3})
    assert known == {"train.lr": 1, "train.batch_size": 2, "data": "hh"}
    assert hyper == {"beta": 0.2, "dpo.beta": 0.3}


def test_a_hyper_parameter_reaches_every_loss_that_has_it_or_the_one_named():
    experiment = load_experiment(None, {"losses": ["dpo", "sft", {"bpo": {"lam": 0.5}}]})
    losses = with_hyper_parameters(experiment, {"beta": 0.2, "dpo.beta": 0.3}).losses
    assert losses == ({"name": "dpo", "beta": 0.3}, "sft", {"name": "bpo", "lam": 0.5, "beta": 0.2})
    losses = with_hyper_parameters(load_experiment(None, {"losses": ["sigmoid"]}), {"sigmoid.beta": 0.3}).losses
    assert losses == ({"name": "dpo", "beta": 0.3},)
    with pytest.raises(ConfigError, match=r"gamma=1: neither a setting .* dpo: beta, label_smoothing"):
        with_hyper_parameters(experiment, {"gamma": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--loss", "dpoo"], "Did you mean 'dpo'"),
        (["compare", "--loss", "dpo(betta=1)"], "no hyper-parameter 'betta'"),
        (["compare", "--loss", "dpo", "gamma=1"], "neither a setting"),
        (["compare", "--loss", "dpo", "train.lrr=1"], "no such setting"),
        (["compare", "--loss", "dpo", "batch_size=4"], "ambiguous: train.batch_size or evaluation.batch_size"),
        (["compare", "--loss", "dpo + 0.2*sft", "beta=1"], "in the sum"),
        (["compare", "missing.yaml"], "missing.yaml cannot be read"),
        (["compare"], "losses: is missing"),
        (["losses", "--plugin", "nowhere.py"], "nowhere.py does not exist"),
        (["leaderboard", "--store", "nowhere.db"], "no MLflow store"),
        (["scores", "position_deca"], "Did you mean 'position_decay'"),
        (["scores", "uniform", "gamma=1"], "no hyper-parameter 'gamma'"),
        (["scores", "uniform", "missing.yaml"], "missing.yaml cannot be read"),
    ],
)
def test_errors_are_sentences_and_exit_with_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
