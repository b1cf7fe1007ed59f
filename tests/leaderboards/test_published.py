"""The published study: its files agree with each other, and its numbers can be computed again without plo."""

import copy
import gzip
import json
import re
import runpy
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from plo.config import load_experiment

FOLDER = Path(__file__).parents[2] / "leaderboards" / "published" / "credit"


@pytest.fixture(scope="module")
def board():
    return read(FOLDER / "leaderboard.json.gz")


def read(path):
    return json.loads(gzip.decompress(path.read_bytes()))


def run(script, folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script, str(folder)])
    monkeypatch.syspath_prepend(FOLDER)
    runpy.run_path(str(FOLDER / script), run_name="__main__")


def test_an_independent_script_of_50_lines_computes_the_same_numbers(monkeypatch, capsys):
    run("check.py", FOLDER, monkeypatch)
    assert "20 verdicts and 532 numbers" in capsys.readouterr().out
    lines = (FOLDER / "check.py").read_text().splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 120
    for script in ("check.py", "variances.py"):
        imported = re.findall(r"^(?:from|import) (\w+)", (FOLDER / script).read_text(), re.MULTILINE)
        assert set(imported) - {"numpy"} <= sys.stdlib_module_names


def test_the_variances_that_it_reads_are_computed_without_plo_too(tmp_path, monkeypatch):
    for name in ("leaderboard.json.gz", "values.csv.gz"):
        shutil.copy(FOLDER / name, tmp_path)
    run("variances.py", tmp_path, monkeypatch)  # which also computes the ranks again
    ours, theirs = (read(folder / "variances.json.gz") for folder in (tmp_path, FOLDER))
    assert ours.keys() == theirs.keys() == {"reward", "kl", "credit.r_A", "credit.r_A0"}
    for metric, looks in theirs.items():
        assert looks.keys() == ({"3", "5", "8"} if metric == "reward" else {"8"})
        for look, rows in looks.items():
            assert ours[metric][look] == {row: pytest.approx(numbers, rel=1e-8) for row, numbers in rows.items()}


PLACES = [
    ("check.py", "verdict"),
    ("check.py", "intervals", "kl", "mean"),
    *(("check.py", "differences", "reward", key) for key in ("mean", "se", "degrees", "low", "high", "p", "p_holm")),
    ("check.py", "differences", "credit.r_A", "low"),
    ("variances.py", "rank", "high"),
]


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_the_scripts_find_a_changed_number_of_the_table(place, board, tmp_path, monkeypatch):
    script, *keys, last = place
    changed = copy.deepcopy(board)
    row = next(row for row in changed["rows"] if row["variant"].startswith("d2po"))
    for key in keys:
        row = row[key]
    row[last] = "better" if last == "verdict" else row[last] + (1 if last == "high" and "rank" in keys else 1e-5)
    for name in ("values.csv.gz", "variances.json.gz"):
        shutil.copy(FOLDER / name, tmp_path)
    (tmp_path / "leaderboard.json.gz").write_bytes(gzip.compress(json.dumps(changed).encode()))
    with pytest.raises(AssertionError, match="differ"):
        run(script, tmp_path, monkeypatch)


@pytest.mark.parametrize("column", [3, 4, 5, 6])
def test_the_script_finds_a_changed_value_of_a_prompt(column, tmp_path, monkeypatch):
    for name in ("leaderboard.json.gz", "variances.json.gz"):
        shutil.copy(FOLDER / name, tmp_path)
    lines = gzip.decompress((FOLDER / "values.csv.gz").read_bytes()).decode().splitlines()
    parts = lines[-1].rsplit(",", 6)
    parts[column] = str(float(parts[column]) + 0.01)
    lines[-1] = ",".join(parts)
    (tmp_path / "values.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    with pytest.raises(AssertionError, match="differ"):
        run("check.py", tmp_path, monkeypatch)


def test_the_table_is_that_of_the_committed_experiment(board):
    experiment = load_experiment(FOLDER / "experiment.yaml")
    assert (board["primary"], board["design"]["margin"]) == (experiment.primary, experiment.margin) == ("reward", 0.4)
    assert board["design"]["looks"] == list(experiment.looks)
    digests = {row["tuning"]["digest"] for row in board["rows"] if row["tuning"]}
    assert len(digests) == 1 and all(row["status"].startswith("tuned(N=8") for row in board["rows"] if row["verdict"])
    seeds = {int(seed) for row in board["rows"] for seed in row["runs"]}
    assert min(seeds) == min(experiment.seeds) == 200


def test_the_findings_have_the_numbers_of_the_records(board, monkeypatch, capsys):
    findings = (FOLDER / "FINDINGS.md").read_text("utf-8")
    run("tables.py", FOLDER, monkeypatch)
    assert capsys.readouterr().out.strip() in findings
    words = Counter(row["verdict"] for row in board["rows"] if row["verdict"])
    assert sum(words.values()) == board["design"]["tests"]
    for word in ("better", "worse", "equivalent", "undecided"):
        assert f"{word}: {words[word]}" in findings


def test_the_confirmation_is_the_experiment_that_was_decided():
    experiment = load_experiment(FOLDER / "confirmation.yaml")
    assert (experiment.name, experiment.primary, experiment.margin) == ("credit-135m", "reward", 0.1)
