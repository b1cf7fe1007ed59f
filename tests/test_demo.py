"""The demo's experiment is whole: tuned losses of all families, with seeds that are added, and a larger version of it."""

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import plo
from plo import extras
from plo.cli import app
from plo.cli import demo as command
from plo.config import load_experiment
from plo.scorers import get_variant

ROOT = Path(__file__).parents[1]


def test_the_demo_has_losses_of_all_families():
    variants = [get_variant(loss) for loss in load_experiment(command.EXPERIMENT).losses]
    needs = [set(variant.needs) for variant in variants]
    assert len(variants) == 8
    assert any("ref_logps" not in need for need in needs)  # without a reference
    assert any("weights" in need for need in needs) and any("kl_ref_pi" in need for need in needs)  # token by token


@pytest.mark.parametrize(
    ("arguments", "trials", "looks", "steps"), [([], 2, (2, 3), 20), (["--full"], 8, (3, 5, 8), 62)]
)
def test_the_demo_tunes_and_looks_in_any_folder(arguments, trials, looks, steps, monkeypatch, tmp_path):
    ran = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run", ran.append)
    monkeypatch.setattr(command, "leaderboard", lambda names: ran.extend(names))
    found = CliRunner().invoke(app, ["demo", *arguments])
    assert found.exit_code == 0, found.output
    experiment, name = ran
    assert name == experiment.name and (experiment.tuning.trials, experiment.looks) == (trials, looks)
    assert experiment.train.steps == steps and experiment.model.name == "pocket"


def test_a_missing_extra_is_named_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(command, "run", lambda experiment: pytest.fail("trained"))
    monkeypatch.setattr(extras, "is_installed", lambda name: name != "scipy")
    found = CliRunner().invoke(app, ["demo"])
    assert found.exit_code == 2 and "pip install 'plo[report]'" in found.stderr


def test_every_file_that_the_package_reads_is_in_the_wheel():
    """An editable install finds files that a wheel lacks, so that no other test would notice."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = Path(plo.__file__).parent
    packed = {file for name, patterns in declared.items() for p in patterns for file in _folder(name).glob(p)}
    published = package / "leaderboards" / "published"  # of a study: no part of the package
    others = {
        file
        for place in (package, *(link for link in package.iterdir() if link.is_symlink()))
        for file in place.rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc") and published not in file.parents
    }
    assert command.EXPERIMENT in others and others == packed


def _folder(package: str) -> Path:
    return ROOT.joinpath(*package.split("."))
