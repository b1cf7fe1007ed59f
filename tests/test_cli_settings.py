"""Settings, caches and plans on the command line: complete, and true."""

import json
import os
import re
import time
from dataclasses import replace

import pytest
import yaml
from typer.testing import CliRunner

from plo import caches
from plo.cli import app
from plo.config import Experiment, TuningConfig, load_experiment
from plo.experiment.plan import Plan, PlannedCell, PlannedStage
from plo.experiment.tuning_plan import PlannedTuning
from plo.section import fields

runner = CliRunner()


def output(*arguments, code=0):
    result = runner.invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def settings(*arguments):
    return {row["setting"]: row for row in json.loads(output("settings", *arguments, "--json"))}


def test_every_setting_has_its_default_and_a_sentence():
    rows = settings()
    assert list(rows) == list(fields(Experiment))
    for row in rows.values():
        assert row["description"][0].isupper() and row["description"].endswith("."), row
    assert (rows["train.lr"]["type"], rows["train.lr"]["allowed"]) == ("number or null", "> 0")
    assert rows["model.peft"]["allowed"] == "lora, full" and rows["model.peft"]["type"] == "choice"
    assert rows["data.options"] == rows["data.options"] | {"type": "mapping", "default": {}, "allowed": ""}
    assert (rows["tuning"]["type"], rows["tuning"]["default"]) == ("mapping or null", None)
    assert rows["tuning.trials"]["default"] == 8 and rows["looks"]["default"] == []
    assert rows["seeds"]["type"] == "list of integer" and rows["seeds"]["default"] == [0, 1]
    assert [name for name, row in rows.items() if row["required"]] == ["losses"]


def test_settings_are_chosen_by_wildcards():
    assert set(settings("*judge*")) == {"evaluation.judge", "evaluation.judge_calls", "evaluation.judge_money"}
    shown = output("settings", "train.warmup")
    assert shown.startswith("train.warmup = 0.1  (number: >= 0, < 1)\n    Share of the steps")
    assert "Did you mean train.lr?" in output("settings", "learning_rate", code=2)


def test_the_file_of_defaults_is_the_defaults(tmp_path):
    text = output("settings", "--yaml")
    everything = re.sub(r"^( *)# ([a-z_]+: .*)$", r"\1\2", text, flags=re.M)
    for content, tuning in ((text, None), (everything, TuningConfig())):
        (tmp_path / "file.yaml").write_text(content)
        assert load_experiment(tmp_path / "file.yaml") == Experiment(losses=("dpo", "ipo"), tuning=tuning)
    assert len(yaml.safe_load(everything)["train"]) == sum(name.startswith("train.") for name in fields(Experiment))


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder of caches with scores of 3000 and 5000 bytes, the first unused for 40 days, and a verdict file."""
    monkeypatch.setenv("PLO_HOME", str(tmp_path))
    for key, size, days in (("old", 3000, 40), ("new", 5000, 0)):
        path = caches.CACHES["scores"].path(key)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * size)
        then = time.time() - days * 86_400
        os.utime(path, (then, then))
    (tmp_path / "verdicts.db").write_bytes(b"y" * 10)
    return lambda: (
        sorted(entry.key for entry in caches.entries(["scores"])) + ["verdicts"] * (tmp_path / "verdicts.db").exists()
    )


def test_caches_are_listed(kept):
    rows = {row["cache"]: row for row in json.loads(output("cache", "--json"))}
    assert list(rows) == list(caches.CACHES)
    assert (rows["scores"]["entries"], rows["scores"]["days unused"]) == (2, "0 to 40")
    assert rows["stages"]["entries"] == 0 and rows["verdicts"]["entries"] == 1


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["--older-than", "30"], ["new", "verdicts"]),
        (["--older-than", "50"], ["new", "old", "verdicts"]),
        (["--larger-than", "6e-6"], ["new", "verdicts"]),
        ([], ["verdicts"]),
        (["--name", "verdicts"], ["new", "old"]),
    ],
)
def test_pruning_shows_first_and_deletes_on_request(kept, arguments, left):
    before = kept()
    shown = json.loads(output("cache", "prune", *arguments, "--json"))
    assert kept() == before and sum(row["entries"] for row in shown) == len(before) - len(left)
    assert json.loads(output("cache", "prune", *arguments, "--yes", "--json")) == shown  # as it was before
    assert kept() == left


def test_a_cache_that_does_not_exist_is_named(kept):
    assert "The caches are models, reference" in output("cache", "--name", "score", code=2)
    assert "--older-than, --larger-than and --yes" in output("cache", "--yes", code=2)


def planned(**changes):
    cells = [
        PlannedCell("reference", 0, "finished", 0, 0),
        PlannedCell("dpo", 0, "resumes", 50, 20, seconds=300.0),
        PlannedCell("reference", 1, "to do", 0, 0, seconds=34.0),
        PlannedCell("dpo", 1, "to do", 50, 0, seconds=900.0),
    ]
    stages = [PlannedStage("sft", ("sft", "dpo"), 25, 200, "finished")]
    facts = {
        "experiment": Experiment(losses=("dpo",), name="mine", eval_at=(0.5,)),
        "data": "200 pairs",
        "pairs": 200,
    }
    facts |= {"store": "sqlite:///plo.db", "comparison": None, "cells": tuple(cells), "stages": tuple(stages)}
    facts |= {"evaluations": ("repetition",), "model_evaluations": ()}
    return Plan(**facts | changes)


@pytest.fixture
def dry_run(monkeypatch):
    """What `plo compare --dry-run` prints about a plan, line by line, and the experiments that it planned."""
    import plo.experiment.plan

    def run(plan, *arguments):
        asked = []
        monkeypatch.setattr(plo.experiment.plan, "plan_comparison", lambda experiment: asked.append(experiment) or plan)
        monkeypatch.setattr("plo.experiment.matrix.compare", lambda *_: pytest.fail("it trains"))
        lines = output("compare", "--loss", "dpo", *arguments, "--dry-run").splitlines()
        return [line.rstrip() for line in lines], asked

    return run


def test_a_dry_run_prints_the_plan_and_trains_nothing(dry_run):
    lines, asked = dry_run(planned(), "name=mine", "beta=0.3")
    assert asked[0].losses == ("dpo(beta=0.3)",)
    assert lines[0] == "mine: new, recorded in sqlite:///plo.db"
    rows = [line.split() for line in lines]
    assert ["variant", "steps", "seeds"] in rows
    place = rows.index(["reference", "-", "0", "finished"])
    assert rows[place + 1] == ["1", "to", "do"]
    assert rows[place + 2 : place + 4] == [["dpo", "50", "0", "resumes", "at", "step", "20"], ["1", "to", "do"]]
    assert ["sft", "sft,", "dpo", "200", "25", "finished"] in rows
    assert lines[-1] == "3 of 4 cells and 80 optimiser steps are left, about 21 minutes."
    assert "Evaluations at 0.5, 1 of the training: repetition" in lines


def test_a_plan_without_known_speed_has_no_time(dry_run):
    cells = tuple(replace(cell, seconds=None) for cell in planned().cells)
    lines, _ = dry_run(planned(cells=cells, comparison="abc", stages=()))
    assert lines[0].startswith("mine: continues run abc") and lines[-1].endswith("80 optimiser steps are left.")
    assert "Stages" not in "".join(lines)


def test_a_dry_run_shows_looks_with_the_baselines_seeds_and_the_tuning(dry_run):
    """Two rows at looks of 2 and 4 seeds, of which the baseline has 3 and 6: 5 cells at least, 10 at most."""
    experiment = Experiment(
        losses=("dpo", "ipo"), name="mine", seeds={"looks": [2, 4]}, baseline="dpo", primary="reward", tuning={}
    )
    looks = {"ipo": [2, 2, 4, 4], "dpo": [2, 2, 2, 4, 4, 4]}
    cells = tuple(
        PlannedCell(name, seed, "to do", 50, 0, look, 60.0)
        for name, own in looks.items()
        for seed, look in enumerate(own)
    )
    plan = planned(experiment=experiment, cells=cells, stages=(), tuning=PlannedTuning(25, 5, 700, 1200.0))
    lines, _ = dry_run(plan)
    text = "\n".join(lines)
    assert "Tuning of every loss first: 20 of 25 trials, 700 optimiser steps, about 20 minutes." in text
    assert ["ipo", "50", "0-3", "to", "do"] in [line.split() for line in lines]
    assert "Looks at 2 seeds (3 of the baseline), 4 seeds (6 of the baseline)" in text
    assert lines[-2:] == [
        "At least 5 of 10 cells and 950 optimiser steps are left, about 25 minutes.",
        "At most 10 of 10 cells and 1200 optimiser steps are left, about 30 minutes.",
    ]
    done = replace(plan, tuning=PlannedTuning(25, 25, 0, 0.0), stop="settled", cells=cells[:2])
    lines, _ = dry_run(done)
    assert "Tuning of every loss first: all 25 trials are finished." in lines
    assert "Looks: recorded verdicts need no further seeds (settled)." in lines
