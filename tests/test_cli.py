"""The command line: help with examples, lists for people and machines, completion, errors without tracebacks."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

import plo
from plo.cli import app
from plo.cli.complete import built_in
from plo.cli.lists import KINDS
from plo.cli.overrides import sort_settings, split
from plo.cli.tables import print_rows
from plo.evals import EVALUATIONS
from plo.scorers import get_variant

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


def test_no_help_text_has_brackets_that_would_be_taken_for_markup():
    """rich leaves out what it reads as a tag, such as the [@URL] of MODEL[@URL]."""
    commands = COMMANDS
    texts = [
        text for command in commands.values() for text in (command.help, *(p.help for p in command.params)) if text
    ]
    assert len(texts) > 50
    assert [text for text in texts if re.search(r"\[[a-z@#/]", text)] == []


def test_a_paragraph_of_a_help_text_is_one_line_that_the_window_folds():
    assert [name for name, command in COMMANDS.items() if re.search(r"[^\n]\n[^\n]", command.help or "")] == []


COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_command_are_read_by_its_parser(name):
    epilog = typer.main.get_command(app).commands[name].epilog
    heading, _, *examples = epilog.replace("    $ ", "").replace("\\[", "[").splitlines()
    assert heading == "Examples:" and 1 <= len(examples) <= 3
    for example in examples:
        assert len(example) <= 76, f"{example} does not fit in a terminal of 80 columns"
        program, command, *arguments = shlex.split(example.split(" > ")[0])
        assert (program, command) == ("plo", "list" if COMMANDS[name].hidden else name)
        values = COMMANDS[command].make_context(command, arguments).params  # raises for what the parser does not know
        for loss in values.get("loss") or [] if name == "compare" else []:
            assert ".py:" in loss or get_variant(loss)
        for part in (values.get("suite") or "").split(",") if name == "eval" else []:
            assert part in EVALUATIONS
        _, settings = split(values.get("arguments") or [])
        assert sort_settings(settings)[1].keys() <= {"dpo.beta", "gamma"}


def test_losses_as_json(plugin):
    losses = listed("list", "losses", "--plugin", plugin)
    keys = {"name", "aliases", "recipe", "needs", "level", "search", "paper", "defaults", "origin"}
    assert all(set(e) == keys for e in losses.values())
    assert losses["sepo"]["search"] == {"gamma": [0.5, 8.0]} and losses["sft"]["search"] == {}
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
    generators = listed("list", "generators", "--plugin", plugin)
    assert {"lr", "kliep", "lsif", "ba", "sba"} <= generators.keys()
    assert generators["square_cli"]["defaults"] == {"p": 2.0}


def test_scorers_as_json(plugin):
    scorers = listed("list", "scorers", "--plugin", plugin)
    assert {"uniform", "position_decay", "subsample", "log_ratio", "tis_rank", "attention_judge"} <= scorers.keys()
    keys = {"name", "aliases", "trains", "reads", "paper", "defaults", "origin"}
    assert all(set(entry) == keys and entry["paper"] for entry in scorers.values() if "tests" not in entry["origin"])
    assert scorers["tis_rank"]["trains"] == ["positive: dpo", "negative: dpo on reversed pairs"]
    assert scorers["subsample"]["reads"] == ["seed"]
    assert scorers["attention_judge"]["reads"] == ["texts", "model"]
    assert scorers["first_cli"]["defaults"] == {"share": 0.5}


def test_evaluations_as_json_have_what_they_declare():
    hh = listed("list", "evaluations", "hh")["hh"]
    assert (hh["level"], hh["main_score"], hh["license"]) == ("model", "win_rate_chosen", "MIT")
    assert hh["citation"] == "Bai et al. 2022, arXiv:2204.05862"
    assert "Bai" not in runner.invoke(app, ["list", "evaluations", "hh"]).output  # a terminal has no room


def test_help_of_list_names_each_kind_whole():
    shown = runner.invoke(app, ["list", "--help"], env={"COLUMNS": "80"}).output
    assert set(KINDS) <= set(re.findall(r"\w+", shown))


def test_wildcards_choose_names_and_an_alias_counts():
    assert list(listed("list", "losses", "*dpo1")) == ["tdpo1"]
    assert list(listed("list", "losses", "sigmoid")) == ["dpo"]
    assert listed("list", "sources", "s*")["sentiment"]["gold"] == "sentiment"
    result = runner.invoke(app, ["list", "judges", "x*"])
    assert result.exit_code == 2 and "There is no judge 'x*'" in result.output


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_is_listed_and_completed_without_torch(kind):
    names = {*listed("list", kind)}
    aliases = {alias for row in listed("list", kind).values() for alias in row["aliases"]}
    mine = {"hinge_cli", "square_cli", "first_cli"}  # of other tests
    assert {*built_in(kind)} == (names | aliases) - mine and len(names) > 4
    if kind != "sources":
        assert runner.invoke(app, [kind]).output == runner.invoke(app, ["list", kind]).output


def completed(*words):
    """What a shell offers for the last word."""
    code = "import sys; from plo.cli import app\ntry: app(prog_name='plo')\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'transformers', 'pandas', 'mlflow'} & sys.modules.keys()))"
    variables = {"_PLO_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | variables)
    *found, heavy = done.stdout.splitlines()
    assert heavy == "[]", done.stdout + done.stderr
    return found


def test_a_shell_completes_names_without_torch():
    assert completed("plo", "list", "losses", "td") == ["tdpo1", "tdpo2"]
    assert completed("plo", "list", "j") == ["judges"]
    assert completed("plo", "verify", "hin") == ["hinge"]
    assert completed("plo", "eval", "--suite", "hh,tl") == ["hh,tldr"]
    assert completed("plo", "judge-check", "re") == ["replay", "reward"]


def test_the_version():
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"plo {plo.__version__}\n")


def test_the_place_of_what_plo_defines_is_below_its_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = runner.invoke(app, ["list", "generators"]).output
    assert "plo/losses/generators.py:" in output and ".." not in output and str(tmp_path.parent) not in output


def test_lists_for_people():
    result = runner.invoke(app, ["list", "losses"])
    assert result.exit_code == 0 and "tdpo2" in result.output and "label_smoothing" in result.output
    lines = [line.split("  ")[0].strip() for line in result.output.splitlines()]
    assert lines[lines.index("dpo") + 1] == "= sigmoid"  # in the name cell, under the name
    assert re.search(r"beta=0.05 .*\n.*  0.0125 to 0.2 ", result.output)  # of discopop, its range below the default
    losses, recipes = result.output.split("Recipes: a loss whose token weights a scorer makes.")
    assert "tis_dpo" in recipes and "tis_dpo" not in losses and "simpo" in losses
    result = runner.invoke(app, ["scorers"])
    assert result.exit_code == 0 and "tis_rank" in result.output


@pytest.mark.parametrize("width", [50, 80, 160])
def test_a_name_or_default_may_fold_but_is_never_cut(width, monkeypatch, capsys):
    monkeypatch.setattr("plo.cli.tables.console", Console(width=width))
    row = {"name": "q" * 45, "level": "model", "defaults": f"x={'7' * 90}\ny=[zz]", "origin": "file.py:1"}
    print_rows([{**row, "name": "short", "defaults": ""}, row])
    shown = capsys.readouterr().out
    assert (shown.count("q"), shown.count("7")) == (45, 90) and "y=[zz]" in shown
    assert max(map(len, shown.splitlines())) <= width


@pytest.fixture
def scores_of(monkeypatch):
    """Replace the engine by one pair made by hand, and record what it is called with."""
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
    ("arguments", "message"),
    [
        (["compare", "--loss", "dpoo"], "Did you mean 'dpo'"),
        (["compare", "--loss", "dpo(betta=1)"], "no hyper-parameter 'betta'"),
        (["compare", "--loss", "dpo", "gamma=1"], "neither a setting"),
        (["compare", "--loss", "dpo", "train.lrr=1"], "no such setting"),
        (["compare", "--loss", "dpo", "batch_size=4"], "ambiguous: train.batch_size or evaluation.batch_size"),
        (["compare", "--loss", "dpo + 0.2*sft", "gamma=1"], "They have: dpo: beta, label_smoothing; sft: none."),
        (["compare", "--loss", "dpo", "train.learning_rate=1"], "did you mean train.lr?"),
        (["compare", "--loss", "dpo", "batch=4"], "Did you mean train.batch_size"),
        (["compare", "lossess=dpo", "--loss", "dpo"], "Did you mean losses?"),
        (["compare", "--loss", "dpo", "seeds=0,a"], "seeds.1: Input should be a valid integer"),
        (["compare", "losses="], "losses: write at least one (got [])"),
        (["compare", "--loss", "dpo", "seeds=-1"], "seeds.0: Input should be greater than or equal to 0 (got -1)"),
        (["leaderboard", "--store", "."], "is a folder: name a file in it"),
        (["compare", "--loss", "dpo", "out=exits.py"], "exits.py: File exists. Name another file or folder."),
        (["losses", "--plugin", "exits.py"], "exits.py failed: SystemExit: 3"),
        (["compare", "--loss", "dpo", "sft.lr=1e-4"], "stages: [sft, preference]"),
        (
            ["compare", "--loss", "dpo", "stages=sft,preference", "sft.lrr=1"],
            "sft.lrr: there is no such setting; did you mean lr",
        ),
        (["eval", "embedded", "--suite", "hh", "--judge-money", "-1"], "judge_money: Input should be greater than 0"),
        (["judge-check", "replay:x.json", "--judge-money", "0"], "judge_money: Input should be greater than 0"),
        (["eval", "./nowhere", "--suite", "lm_eval"], "The model folder ./nowhere is not there"),
        (["eval", "x", "--suite", "hh", "hh.against=foo", "--judge", "hf:x"], "against=['foo'] of the evaluation 'hh'"),
        (["judge-check", "hf:x", "pairs.jsonl", "--limit", "-1"], "Invalid value for '--limit'"),
        (["judge-check", "hf:x", "pairs.jsonl", "--retest", "-1"], "Invalid value for '--retest'"),
        (["compare", "missing.yaml"], "missing.yaml cannot be read"),
        (["compare"], "There are no losses to compare: give --loss dpo, losses=dpo,ipo or an experiment file."),
        (["compare", "lossess=dpo"], "lossess: there is no such setting; did you mean losses?"),
        (["compare", "--loss", "dpo(beta=0.1, beta=0.2)"], "sets beta twice"),
        (["compare", "--loss", "wpo(base=twdpo)"], "needs token weights"),
        (["compare", "--loss", "bpo", "bpo.preset=imdb"], "must be one of hh, tldr, llama3"),
        (["losses", "--plugin", "nowhere.py"], "nowhere.py does not exist"),
        (["leaderboard", "--store", "nowhere.db"], "no MLflow store"),
        (["scores", "position_deca"], "Did you mean 'position_decay'"),
        (["scores", "uniform", "gamma=1"], "no hyper-parameter 'gamma'"),
        (["scores", "uniform", "missing.yaml"], "missing.yaml cannot be read"),
    ],
)
def test_errors_are_sentences_and_exit_with_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)")
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
