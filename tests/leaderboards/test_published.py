"""The published study: its files agree with each other, and its numbers can be computed again without plo."""

import copy
import gzip
import importlib
import json
import re
import runpy
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from plo.config import load_experiment
from plo.leaderboards.manifest_file import read_manifest

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


@pytest.fixture(scope="module")
def findings():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("findings")


def test_every_number_of_the_findings_is_that_of_the_records(board, findings):
    written = (FOLDER / "FINDINGS.md").read_text("utf-8")
    assert written == findings.render(FOLDER), (
        "python leaderboards/published/credit/findings.py, and read the sentences"
    )
    words = Counter(row["verdict"] for row in board["rows"] if row["verdict"])
    assert sum(words.values()) == board["design"]["tests"]
    assert ", ".join(f"{word}: {words[word]}" for word in ("better", "worse", "equivalent", "undecided")) in written
    by_hand = (FOLDER / "FINDINGS.md.jinja").read_text("utf-8")
    assert not re.findall(r"[+-]?\d+\.\d+ \[", by_hand)  # no interval is typed


def test_what_the_findings_say_in_words_is_so(findings):
    found = findings.Findings(FOLDER)

    def at_kl(name):
        return found.board["matched_kl"]["differences"][found.rows[name]["name"]]

    def gap(name, metric):
        return found.rows[name]["differences"][metric]

    assert "**Not shown:" in (FOLDER / "FINDINGS.md").read_text("utf-8") and found.count("better") == 0
    assert all(one["low"] <= 0 for one in found.board["matched_kl"]["differences"].values())
    assert all(at_kl(name)["low"] <= 0 <= at_kl(name)["high"] for name in ("tbpo_q", "tbpo_a", "tdpo1", "d2po"))
    for name in ("tbpo_a", "tdpo1"):  # better credit, less KL, less reward
        assert (
            gap(name, "credit.r_A")["low"] > 0 and gap(name, "credit.r_A0")["low"] > 0 and gap(name, "kl")["high"] < 0
        )
        assert found.verdict(name) == "worse"
    assert found.contrasts["gold_weights less their shuffle", "reward"][2] > 0
    assert found.contrasts["sepo less sepo with random scores", "credit.r_A"][3] < 0
    assert found.contrasts["end_attention less its shuffle", "reward"][3] < 0
    assert found.design["detectable"] > found.design["margin"]


@pytest.fixture(scope="module")
def page():
    return (FOLDER / "page.html").read_text("utf-8")


def test_the_page_has_the_numbers_of_the_records(board, page):
    table = re.search('<table id="table-main".*?</table>', page, re.DOTALL)[0]
    lines = [
        re.findall(r'<(?:td|th)(?: data-key="([^"]*)")?[^>]*>(.*?)</', line, re.DOTALL)
        for line in table.split("<tr>")[2:]
    ]
    assert len(lines) == len(board["rows"])
    for line, row in zip(lines, board["rows"], strict=True):
        (_, reward), (_, gap), (_, verdict), (_, rank), *_ = line[1:]
        assert reward.startswith(f"{row['metrics']['reward']['mean']:.2f} [")
        assert float(line[1][0]) == row["metrics"]["reward"]["mean"]
        if row["name"] != board["baseline"]:
            found = row["differences"]["reward"]
            assert gap == f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"
        assert not row["verdict"] or row["verdict"] in verdict
        assert rank == (f"{row['rank']['rank']} [{row['rank']['low']}, {row['rank']['high']}]" if row["rank"] else "-")


def test_the_manifest_of_the_page_is_of_the_same_runs(board):
    found = read_manifest(FOLDER / "page.html")
    rows = {row["name"]: row for row in board["rows"]}
    assert [one["name"] for one in found["table"]["rows"]] == list(rows)
    for one in found["table"]["rows"]:
        assert one["means"]["reward"] == pytest.approx(rows[one["name"]]["metrics"]["reward"]["mean"], rel=1e-12)
        assert one["verdict"] == rows[one["name"]]["verdict"]
    assert {cell["run"] for cell in found["cells"]} == {run for row in rows.values() for run in row["runs"].values()}


def test_the_published_pages_have_the_newest_style_and_script_and_are_small():
    from_here = runpy.run_path(str(FOLDER.parents[2] / "docs" / "gallery" / "newest.py"))
    for path in from_here["PAGES"]:
        text = path.read_text("utf-8")
        assert text == from_here["newest"](text), f"python docs/gallery/newest.py: {path.name} is of an earlier plo"
        assert len(text.encode()) < 1_000_000


@pytest.mark.slow
def test_the_gallery_has_the_page_that_the_newest_code_makes_of_alpaca_evals_verdicts(
    shared_data, tmp_path, monkeypatch
):
    """All of the page but its manifest, which names this machine and the versions of its packages."""
    script = FOLDER.parents[2] / "docs" / "gallery" / "alpaca_eval.py"
    copied = shutil.copy(script, tmp_path)
    monkeypatch.setenv("PLO_DATA", str(shared_data))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(copied), run_name="__main__")
    assert not ended.value.code
    made, committed = (without_manifest(path) for path in (tmp_path / "alpaca_eval.html", script.with_suffix(".html")))
    assert made == committed, "PLO_DATA=FOLDER make gallery"


def without_manifest(path):
    text = re.sub('(?<=id="plo-manifest">).*?(?=</script>)', "", path.read_text("utf-8"), flags=re.DOTALL)
    return text.splitlines()


def test_the_confirmation_is_the_experiment_that_was_decided():
    experiment = load_experiment(FOLDER / "confirmation.yaml")
    assert (experiment.name, experiment.primary, experiment.margin) == ("credit-135m", "reward", 0.1)
