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
from plo.experiment.costs import Costs
from plo.experiment.estimate import Estimate
from plo.experiment.plan import Plan, PlannedCell, Shape
from plo.experiment.plan_stages import PlannedStage
from plo.experiment.tuning_plan import PlannedTrial, PlannedTuning
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
    names = {
        f"{part}.{name}" for part in ("data.sample", "evaluation") for name in ("judge", "judge_calls", "judge_money")
    }
    assert set(settings("*judge*")) == names
    shown = output("settings", "train.warmup")
    assert shown.startswith("train.warmup = 0.1  (number: >= 0, < 1)\n    Share of the steps")
    assert "Did you mean train.lr?" in output("settings", "learning_rate", code=2)


def test_the_file_of_defaults_is_the_defaults(tmp_path):
    text = output("settings", "--yaml")
    everything = re.sub(r"^( *)# ([a-z_]+: .*)$", r"\1\2", text, flags=re.M)
    for content, tuning in ((text, None), (everything, TuningConfig())):
        (tmp_path / "file.yaml").write_text(content)
        expected = Experiment(losses=("dpo", "ipo"), tuning=tuning)
        assert load_experiment(tmp_path / "file.yaml").model_dump() == expected.model_dump()
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
    assert "The caches are models, " in output("cache", "--name", "score", code=2)
    assert "--older-than, --larger-than and --yes" in output("cache", "--yes", code=2)


COSTS = {"start": 10.0, "training log-probs": 0.5, "evaluation": 1.0, "evaluation of the reference": 2.0, "memory": 1.5}


def planned(**changes):
    """Two seeds of dpo: a pair has 4 tokens, a step 3 pairs, so that a step takes 6 s and an evaluation of 30 samples 30 s."""
    cells = [
        PlannedCell("reference", 0, "finished", 0, 0),
        PlannedCell("dpo", 0, "resumes", 50, 20, 0, "log-probs", 3),
        PlannedCell("reference", 1, "to do", 0, 0),
        PlannedCell("dpo", 1, "to do", 50, 0, 0, "log-probs", 3),
    ]
    stages = [PlannedStage("sft", ("reference", "dpo"), 25, 200, "finished", 0, unit="sft of seed 0")]
    facts = {
        "experiment": Experiment(losses=("dpo",), name="mine", eval_at=(0.5,)),
        "data": "200 pairs",
        "pairs": 200,
        "shape": Shape(4.0, 2.0, 30),
    }
    facts |= {"store": "sqlite:///plo.db", "comparison": None, "cells": tuple(cells), "stages": tuple(stages)}
    facts |= {"evaluations": ("repetition",), "model_evaluations": ()}
    return Plan(**facts | changes)


@pytest.fixture
def shown(monkeypatch):
    """What `plo plan`, or another command, prints about a plan, line by line, and the experiments that it planned."""
    import plo.experiment.estimates

    def run(plan, *arguments, costs=COSTS):
        asked = []

        def estimate(experiment, *, workers, measure, measuring):
            asked.append((experiment, measure))
            return Estimate(plan, Costs.of(costs, "3 recorded cells"), workers)

        monkeypatch.setattr(plo.experiment.estimates, "estimate", estimate)
        monkeypatch.setattr("plo.experiment.matrix.compare", lambda *_: pytest.fail("it trains"))
        lines = output(*(arguments or ("plan", "losses=dpo"))).splitlines()
        return [line.rstrip() for line in lines], asked

    return run


def test_a_plan_is_printed_with_its_estimate(shown):
    """Left are 30 steps and two evaluations of seed 0, the reference of seed 1, and 50 steps and two evaluations of it."""
    lines, asked = shown(planned(), "plan", "losses=dpo", "name=mine", "beta=0.3")
    ((experiment, measure),) = asked
    assert experiment.losses == ("dpo(beta=0.3)",) and measure
    assert lines[0] == "mine: new, recorded in sqlite:///plo.db"
    rows = [line.split() for line in lines]
    assert ["variant", "steps", "seeds"] in rows
    place = rows.index(["reference", "-", "0", "finished"])
    assert rows[place + 1] == ["1", "to", "do"]
    assert rows[place + 2 : place + 4] == [["dpo", "50", "0", "resumes", "at", "step", "20"], ["1", "to", "do"]]
    assert ["sft", "all", "200", "25", "0", "finished"] in rows
    assert "Evaluations at 0.5, 1 of the training: repetition" in lines
    work = rows.index(["work", "left", "each", "together", "memory", "disk", "from"])
    found = ["3", "recorded", "cells"]
    assert rows[work + 1] == ["start-up", "1", "10", "s", "10", "s", "1.5", "GB", "-", *found]
    dpo, reference = 30 * 6 + 2 * 30 + 50 * 6 + 2 * 30, 60
    assert rows[work + 2] == ["dpo", "2", "5", "min", "10", "min", "1.5", "GB", "-", *found]
    assert rows[work + 3] == ["reference", "1", "60", "s", "60", "s", "1.5", "GB", "-", *found]
    minutes = round((10 + dpo + reference) / 60)
    ending = f"3 of 4 cells and 80 optimiser steps are left, about {minutes} minutes; a peak memory of 1.5 GB."
    assert lines[-1] == ending


def test_a_dry_run_is_a_plan_that_measures_nothing(shown):
    plan, _ = shown(planned(), "plan", "losses=dpo")
    dry, ((_, measure),) = shown(planned(), "compare", "--loss", "dpo", "--dry-run")
    assert dry == plan and not measure


def test_a_plan_without_known_costs_has_no_time(shown):
    lines, _ = shown(planned(comparison="abc", stages=()), costs={})
    assert lines[0].startswith("mine: continues run abc") and lines[-1].endswith("80 optimiser steps are left.")
    assert not {"Stages", "Estimate"} & {line.split(",")[0].split(" of")[0] for line in lines}


def test_a_plan_as_json_has_units_with_what_they_wait_for(shown):
    cells = planned().cells
    plan = planned(cells=(*cells[:3], replace(cells[3], needs=("reference seed 1",))))
    lines, _ = shown(plan, "plan", "losses=dpo", "--workers", "2", "--json")
    found = json.loads("\n".join(lines))
    units = {unit["name"]: unit for unit in found["units"]}
    assert units["dpo seed 0"]["seconds"] == 30 * 6 + 2 * 30
    assert units["dpo seed 1"] == {
        "name": "dpo seed 1", "kind": "cell", "row": "dpo", "look": 0, "needs": ["reference seed 1"],
        "seconds": 50 * 6 + 2 * 30, "memory_gb": 1.5, "disk_bytes": 0.0, "judge_calls": 0, "money": 0.0,
        "from": ["3 recorded cells"],
    }  # fmt: skip
    assert found["total"]["at_most"]["wall_seconds"] == 10 + 60 + 360, "two workers, and dpo waits for its reference"
    assert found["total"]["at_most"]["device_seconds"] == 2 * 10 + 240 + 60 + 360
    assert found["costs"]["start"] == {"value": 10.0, "source": "3 recorded cells"}


def test_a_plan_shows_looks_with_the_baselines_seeds_and_the_tuning(shown):
    """Two rows at looks of 2 and 4 seeds, of which the baseline has 3 and 6: 5 cells at least, 10 at most."""
    experiment = Experiment(
        losses=("dpo", "ipo"), name="mine", seeds={"looks": [2, 4]}, baseline="dpo", primary="reward", tuning={}
    )
    looks = {"ipo": [2, 2, 4, 4], "dpo": [2, 2, 2, 4, 4, 4]}
    cells = tuple(
        PlannedCell(name, seed, "to do", 50, 0, look, "log-probs", 3)
        for name, own in looks.items()
        for seed, look in enumerate(own)
    )
    trials = tuple(PlannedTrial(None, 1, 35, "log-probs", 3) for _ in range(20))
    facts = {"experiment": experiment, "cells": cells, "stages": (), "trials_need": ((),) * 20}
    plan = planned(tuning=PlannedTuning(25, trials), **facts)
    lines, _ = shown(plan, costs=COSTS | {"start": 0.0})
    text = "\n".join(lines)
    assert "Tuning of every loss first: 20 of 25 trials, 700 optimiser steps. It may change" in text
    assert ["ipo", "50", "0-3", "to", "do"] in [line.split() for line in lines]
    assert "Looks at 2 seeds (3 of the baseline), 4 seeds (6 of the baseline)" in text
    cell = 50 * 6 + 4 * 30  # evaluated at .1, .25, .5 and 1 of the training
    trial = 35 * 6 + 30
    least, most = ((20 * trial + count * cell) / 60 for count in (5, 10))
    assert lines[-2:] == [
        f"At least 5 of 10 cells and 950 optimiser steps are left, about {least:.0f} minutes; a peak memory of 1.5 GB.",
        f"At most 10 of 10 cells and 1200 optimiser steps are left, about {most / 60:.1f} hours; a peak memory of 1.5 GB.",
    ]
    done = replace(plan, tuning=PlannedTuning(25, ()), trials_need=(), stop="settled", cells=cells[:2])
    lines, _ = shown(done)
    assert "Tuning of every loss first: all 25 trials are finished." in lines
    assert "Looks: recorded verdicts need no further seeds (settled)." in lines
