"""Settings and caches on the command line: complete, and true."""

import json
import os
import re
import time

import pytest
import yaml
from typer.testing import CliRunner

from plo import caches
from plo.cli import app
from plo.config import Experiment, fields, load_experiment

runner = CliRunner()


def output(*arguments, code=0):
    result = runner.invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def settings(*arguments):
    return {row["setting"]: row for row in json.loads(output("settings", *arguments, "--json"))}


def test_every_setting_has_its_default_and_a_sentence():
    rows = settings()
    assert list(rows) == list(fields())
    for row in rows.values():
        assert row["description"][0].isupper() and row["description"].endswith("."), row
    assert (rows["train.lr"]["type"], rows["train.lr"]["allowed"]) == ("number or null", "> 0")
    assert rows["model.peft"]["allowed"] == "lora, full" and rows["model.peft"]["default"] == "lora"
    assert rows["data.options"] == rows["data.options"] | {"type": "mapping", "default": {}, "allowed": ""}
    assert rows["seeds"]["type"] == "list of integer" and rows["seeds"]["default"] == [0, 1]
    assert [name for name, row in rows.items() if row["required"]] == ["losses"]


def test_settings_are_chosen_by_wildcards():
    assert set(settings("*judge*")) == {"evaluation.judge", "evaluation.judge_calls", "evaluation.judge_money"}
    shown = output("settings", "train.warmup")
    assert shown.startswith("train.warmup = 0.1  (number, >= 0, < 1)\n    Share of the steps")
    assert "Did you mean train.lr?" in output("settings", "learning_rate", code=2)


def test_the_file_of_defaults_is_the_defaults(tmp_path):
    text = output("settings", "--yaml")
    everything = re.sub(r"^( *)# ([a-z_]+: .*)$", r"\1\2", text, flags=re.M)
    for content in (text, everything):
        (tmp_path / "file.yaml").write_text(content)
        assert load_experiment(tmp_path / "file.yaml") == Experiment(losses=("dpo", "ipo"))
    assert len(yaml.safe_load(everything)["train"]) == sum(name.startswith("train.") for name in fields())


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
    output("cache", "prune", *arguments)
    assert kept() == before
    output("cache", "prune", *arguments, "--yes")
    assert kept() == left


def test_a_cache_that_does_not_exist_is_named(kept):
    assert "The caches are models, reference" in output("cache", "--name", "score", code=2)
    assert "--older-than, --larger-than and --yes" in output("cache", "--yes", code=2)
