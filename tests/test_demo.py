"""The demo's experiment is whole: tuned losses of all families, with seeds that are added, and a larger version of it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from plo.cli import app
from plo.cli import demo as command
from plo.config import load_experiment
from plo.scorers import get_variant

FILE = Path(__file__).parents[1] / "docs" / "demo.yaml"


def test_the_demo_has_losses_of_all_families():
    variants = [get_variant(loss) for loss in load_experiment(FILE).losses]
    needs = [set(variant.needs) for variant in variants]
    assert len(variants) == 8
    assert any("ref_logps" not in need for need in needs)  # without a reference
    assert any("weights" in need for need in needs) and any("kl_ref_pi" in need for need in needs)  # token by token


@pytest.mark.parametrize(
    ("arguments", "trials", "looks", "steps"), [([], 2, (2, 3), 20), (["--full"], 8, (3, 5, 8), 62)]
)
def test_the_demo_tunes_and_looks(arguments, trials, looks, steps, monkeypatch):
    ran = []
    monkeypatch.setattr(command, "run", ran.append)
    monkeypatch.setattr(command, "leaderboard", lambda names: ran.extend(names))
    found = CliRunner().invoke(app, ["demo", *arguments, "--experiment", str(FILE)])
    assert found.exit_code == 0, found.output
    experiment, name = ran
    assert name == experiment.name and (experiment.tuning.trials, experiment.looks) == (trials, looks)
    assert experiment.train.steps == steps and experiment.model.name == "pocket"
