"""`plo tune` and `plo power` on the command line: what they print, and the command that goes on."""

import json

import pytest
from typer.testing import CliRunner

from plo.cli import app
from plo.experiment.matrix import Outcome
from plo.experiment.power import Measured
from plo.experiment.tuning import Tuned
from plo.scorers import get_variant

runner = CliRunner(env={"COLUMNS": "80"})


def output(*arguments, code=0):
    result = runner.invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def record(**changes):
    facts = {"digest": "abc", "trials": 8, "metric": "reward", "space": {}, "point": {}, "edges": [], "score": 0.5}
    return facts | {"default": 0.25, "first": [], "seconds": 61.4, "within_kl": True} | changes


@pytest.fixture
def tuned(monkeypatch):
    """Replace the tuning: `dpo` gets another learning rate, of `ipo` all trials diverged."""
    calls = []
    point = {"train.lr": 5e-4, "beta": 0.2}
    found = [
        Tuned(get_variant("dpo"), get_variant("dpo(beta=0.2) @ lr=5e-4"), record(point=point, edges=["train.lr"])),
        Tuned(get_variant("ipo"), get_variant("ipo"), record(score=None, default=None, within_kl=False)),
    ]

    def compare(experiment, progress, *, only_tuning=False, engine=None):
        calls.append((experiment, only_tuning))
        return Outcome("run", {}, found)

    monkeypatch.setattr("plo.experiment.matrix.compare", compare)
    return calls


def test_tuning_prints_what_it_chose_and_the_command_that_goes_on(tuned):
    shown = output("tune", "losses=dpo,ipo", "tuning.trials=8", "--store", "my runs.db")
    experiment, only_tuning = tuned[0]
    assert only_tuning and experiment.tuning.trials == 8 and experiment.store == "my runs.db"
    rows = [line.split() for line in shown.splitlines()]
    assert ["dpo", "lr=0.0005", "beta=0.2", "0.250", "0.500", "lr", "61"] in rows
    assert ["ipo", "as", "given", "diverged", "diverged", "-", "61"] in rows
    assert "may lie outside: dpo: train.lr." in shown and "so the settings as given stay: ipo." in shown
    assert "Compare them: plo compare losses=dpo,ipo tuning.trials=8 '--store=my runs.db'" in shown
    assert max(map(len, (line for line in shown.splitlines() if "  " in line))) <= 80


def test_tuning_as_json(tuned):
    dpo, ipo = json.loads(output("tune", "losses=dpo,ipo", "tuning.trials=8", "--json"))
    assert (dpo["loss"], dpo["chosen"]) == ("dpo", "dpo(beta=0.2) @ lr=0.0005")
    assert (dpo["default"], dpo["score"], dpo["seconds"]) == (0.25, 0.5, 61.4) and ipo["score"] is None


def test_what_has_no_tuning_is_not_tuned():
    assert "give tuning.trials=8" in output("tune", "losses=dpo", code=2)


@pytest.fixture
def measured(monkeypatch):
    """Replace recorded cells: a residual of variance 4 alone, a cell of 10 seconds, .01 seconds a sample."""
    components = {"loss x seed": 0.0, "loss x prompt": 0.0, "residual": 4.0, "loss": float("nan")}
    found = Measured("reward", "mine", 3, 5, 100, 2, components, float("inf"), 10.0, 0.01, 400, 2, 0.05)
    monkeypatch.setattr("plo.experiment.power.measure", lambda experiment: found)


def test_power_prints_designs_with_what_they_detect_and_cost(measured):
    """With K samples measured as 2 the residual stays: 2 rows x 5 seeds x (10 + 100 x 2 x .01) seconds are 120."""
    shown = output("power", "losses=dpo", "evaluation.prompts=100", "seeds=0,1,2,3,4")
    assert "reward of mine: 3 variants, 5 seeds, 100 prompts, 2 samples each" in shown
    assert "Standard deviations: loss x seed 0, loss x prompt 0, residual 2\n" in shown
    rows = {tuple(cells[:3]): cells[3:] for line in shown.splitlines() if len(cells := line.split()) == 7}
    assert rows["5", "100", "2"][1:] == ["10", "2", "minutes"] and ("5", "400", "2") in rows
    less, more = (float(rows["5", prompts, "2"][0]) for prompts in ("400", "100"))
    assert less == pytest.approx(more / 2, rel=0.02)  # with prompts' noise alone, four times as many halve it
    assert json.loads(output("power", "losses=dpo", "evaluation.prompts=100", "--json"))[0]["seeds"] == 2


def test_power_finds_the_cheapest_design_for_a_difference(measured):
    shown = output("power", "losses=dpo", "--detect", "0.5")
    (design,) = json.loads(output("power", "losses=dpo", "--detect", "0.5", "--json"))
    assert 0.45 < design["detectable"] <= 0.5 and design["prompts"] <= 400
    seeds = ",".join(map(str, range(design["seeds"])))
    sizes = f"seeds={seeds} evaluation.prompts={design['prompts']} evaluation.samples={design['samples']}"
    assert f"Run it: plo compare losses=dpo {sizes}" in shown
    assert "the least is" in output("power", "losses=dpo", "--detect", "0.001", code=2)
