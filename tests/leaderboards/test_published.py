"""The published study: its files agree with each other, and its numbers can be computed again without plo."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from plo.config import load_experiment

FOLDER = Path(__file__).parents[2] / "leaderboards" / "published" / "credit"


def run(script, *arguments):
    return subprocess.run([sys.executable, FOLDER / script, *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def board():
    return json.loads(gzip.decompress((FOLDER / "leaderboard.json.gz").read_bytes()))


def test_an_independent_script_of_50_lines_computes_the_same_numbers():
    done = run("check.py")
    assert done.returncode == 0, done.stderr
    assert "verdicts and" in done.stdout
    assert len((FOLDER / "check.py").read_text().splitlines()) <= 50
    code = "".join((FOLDER / name).read_text() for name in ("check.py", "recompute.py"))
    imported = set(re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE))
    assert imported - {"numpy", "recompute"} <= sys.stdlib_module_names


def test_the_script_finds_a_changed_value(tmp_path):
    shutil.copy(FOLDER / "leaderboard.json.gz", tmp_path)
    lines = gzip.decompress((FOLDER / "values.csv.gz").read_bytes()).decode().splitlines()
    row, seed, prompt, reward, *others = lines[-1].rsplit(",", 6)
    lines[-1] = ",".join([row, seed, prompt, str(float(reward) + 0.5), *others])
    (tmp_path / "values.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    done = run("check.py", tmp_path)
    assert done.returncode != 0 and "differ" in done.stderr


def test_the_table_is_that_of_the_committed_experiment(board):
    experiment = load_experiment(FOLDER / "experiment.yaml")
    assert (board["primary"], board["design"]["margin"]) == (experiment.primary, experiment.margin) == ("reward", 0.4)
    assert board["design"]["looks"] == list(experiment.looks)
    digests = {row["tuning"]["digest"] for row in board["rows"] if row["tuning"]}
    assert len(digests) == 1 and all(row["status"].startswith("tuned(N=8") for row in board["rows"] if row["verdict"])
    seeds = {int(seed) for row in board["rows"] for seed in row["runs"]}
    assert min(seeds) == min(experiment.seeds) == 200


def test_the_findings_have_the_numbers_of_the_records(board):
    findings = (FOLDER / "FINDINGS.md").read_text("utf-8")
    tables = run("tables.py")
    assert tables.returncode == 0, tables.stderr
    assert tables.stdout.strip() in findings
    words = Counter(row["verdict"] for row in board["rows"] if row["verdict"])
    assert sum(words.values()) == board["design"]["tests"]
    for word in ("better", "worse", "equivalent", "undecided"):
        assert f"{word}: {words[word]}" in findings


def test_the_confirmation_is_the_experiment_that_was_decided():
    experiment = load_experiment(FOLDER / "confirmation.yaml")
    assert (experiment.name, experiment.primary, experiment.margin) == ("credit-135m", "reward", 0.1)
