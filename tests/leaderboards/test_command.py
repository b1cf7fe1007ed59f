"""`plo leaderboard` of a fabricated store: the table is printed, whatever becomes of reward against KL beside it."""

import builtins

import pandas as pd
import pytest
from typer.testing import CliRunner

from plo.cli import app
from plo.tracking import Tracker

SHARED = {"plo.data": "data", "plo.model": "model", "plo.evaluation": "evaluation"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """dpo at two learning rates, each a comparison of its own."""
    path = tmp_path_factory.mktemp("store") / "plo.db"
    tracker = Tracker(path)
    for lr in ("0.001", "0.002"):
        parent = tracker.comparison(f"lr {lr}", f"key-{lr}", {})
        for loss in ("reference", "dpo"):
            own = SHARED | {"plo.loss": loss, "plo.variant": loss, "plo.seed": 0}
            params = {} if loss == "reference" else {"lr": lr, "beta": "0.1", "peft": "lora"}
            cell = tracker.start_cell(parent, f"{loss}/0", f"{loss} seed 0", own, params)
            cell.log({"reward": 0.5, "kl": 2.0, "kl_se": 0.1}, 0 if loss == "reference" else 60)
            cell.finish({})
    return str(path)


def leaderboard(*arguments):
    result = CliRunner().invoke(app, ["leaderboard", *arguments])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_two_learning_rates_stand_in_one_table_and_in_one_picture(store, tmp_path):
    said = leaderboard("--store", store, "--out", str(tmp_path))
    assert "| dpo \\[lr=0.001, beta=0.1, peft=lora\\] | 0.001 |" in said and "| 0.002 | 0.1 | lora |" in said
    assert "Reward against KL: frontier.md and .png." in said and (tmp_path / "frontier.png").exists()
    assert "| dpo \\[lr=0.001\\] | 100% | 1 | 2.000 | 0.500 |" in (tmp_path / "frontier.md").read_text()


def test_files_that_are_gone_are_an_error_not_a_table_without_differences(tmp_path):
    tracker = Tracker(tmp_path / "plo.db")
    cell = tracker.start_cell(tracker.comparison("c", "key-c", {}), "dpo/0", "dpo seed 0", SHARED)
    cell.table(pd.DataFrame({"prompt_id": [0], "reward": [0.5]}), "samples.json")
    cell.finish({"reward": 0.5})
    (tmp_path / "mlartifacts").rename(tmp_path / "lost")
    result = CliRunner().invoke(app, ["leaderboard", "--store", str(tmp_path / "plo.db"), "--out", str(tmp_path)])
    assert result.exit_code == 2 and "moving its folder mlartifacts" in result.output, result.output
    assert not (tmp_path / "leaderboard.md").exists()


def test_without_matplotlib_the_table_is_printed_and_what_lacks_is_said(store, tmp_path, monkeypatch):
    def without(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ImportError("none here")
        return original(name, *arguments, **options)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    said = leaderboard("--store", store, "--out", str(tmp_path))
    assert "| 0.002 | 0.1 | lora |" in said
    assert "Reward against KL: not drawn. The picture needs matplotlib (none here): pip install matplotlib." in said
