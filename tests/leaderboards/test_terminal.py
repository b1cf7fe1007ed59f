"""What `plo leaderboard` prints in a terminal: what won, a table that fits, the notes; and the CSV a spreadsheet opens."""

import csv
import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from plo.cli import reports
from plo.leaderboards import Leaderboard, Row, to_csv
from plo.leaderboards.terminal import GAP, headline, to_terminal
from plo.metric import BUILT_IN, Metric
from plo.statistics import Comparison, Spread, verdict

NAMES = ("reward", "kl", "ref_nll", "tokens", "distinct_1")


def gap(mean, p):
    return Comparison(mean, 0.02, 0.5, mean - 0.05, mean + 0.05, p, 64, 3, 0, 2.0, p)


def board(gaps, names=NAMES, primary="reward", better="↑", variants=None, words=None):
    """A table of one row a difference, with `words` as verdicts (None: as `verdict` gives them)."""
    base = Row("reference", "reference", {"lr": None}, {"0": "run-0"}, {n: Spread(0.1, 0.01, 1) for n in names})
    rows = [base]
    for place, one in enumerate(gaps):
        variant = (variants or [f"loss{i}" for i in range(len(gaps))])[place]
        found = {n: Spread(0.1, 0.01, 3) for n in names}
        word = words[place] if words else verdict(one, higher_is_better=better != "↓")
        rows.append(
            Row(
                variant,
                variant,
                {"lr": "0.1"},
                {"0": f"run-{variant}"},
                found,
                differences={primary: one},
                verdict=word,
            )
        )
    how = {name: BUILT_IN.get(name, Metric(name, name)) for name in names}
    how[primary] = replace(how[primary], better=better)
    return Leaderboard(rows, list(names), base, {}, ["c"], ["A note."], [], primary_metric=primary, descriptions=how)


def shown(one, width):
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(to_terminal(one, width))
    return console.file.getvalue()


def test_the_first_line_gives_the_verdict_on_every_variant():
    one = board([gap(0.3, 0.001), gap(0.05, 0.3), gap(-0.4, 1e-4), gap(0.5, 1e-4)])
    better = "Better than reference in reward: loss3 (+0.500), loss0 (+0.300)."
    assert headline(one) == f"{better} Worse: loss2 (-0.400). Undecided: loss1 (+0.050)."
    none = "No winner: none of 2 variants is better than reference in reward."
    words = ["equivalent", "undecided"]
    said = headline(board([gap(0.001, 0.9), gap(0.3, 0.2)], words=words))
    assert said == f"{none} Equivalent: loss0 (+0.001). Undecided: loss1 (+0.300)."
    assert headline(board([gap(-0.3, 1e-4)], better="↓")) == "Better than reference in reward: loss0 (-0.300)."
    assert headline(board([])) == "No winner: no variant was compared with reference in reward."
    assert headline(replace(one, primary_metric=None)).startswith("No winner: the runs have no primary metric")
    assert headline(replace(one, baseline=None)).startswith("No winner: the runs have no baseline")


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_table_fits_the_width_and_says_what_it_leaves_out(width):
    text = shown(board([gap(0.3, 0.001), gap(0.05, 0.3)]), width)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("Better than reference") and "- A note." in lines
    row = [line for line in lines if line.startswith("loss1")][-1]
    assert "+0.050 [+0.000, +0.100]" in row and "undecided" in row if width >= 80 else row
    if width == 200:
        assert "undecided" in row and "distinct-1" in text and "Only in the Markdown file" not in text
    else:
        assert "Only in the Markdown file:" in text and "distinct-1" in text.split("Markdown file:")[1]
    assert text.index("- A note.") > text.index("loss1") > text.index("Better than")


def test_an_interval_that_is_undefined_is_explained_where_there_is_one():
    nothing_differs = replace(gap(0.0, math.nan), low=math.nan, high=math.nan)
    explained = "Δ without an interval: one prompt"
    assert explained in shown(board([nothing_differs, gap(0.3, 0.001)]), 200)
    assert explained not in shown(board([gap(0.3, 0.001)]), 200)


def test_columns_fill_the_width_to_the_last_one_that_fits():
    one = board([gap(0.3, 0.001)])
    wide = max(len(line.rstrip()) for line in shown(one, 300).splitlines() if line.startswith(("loss", "reference")))
    assert "Only in" not in shown(one, wide) and "Only in" in shown(one, wide - GAP)


def test_long_names_and_control_characters_stay_in_their_place():
    text = shown(board([gap(0.3, 1e-4)], variants=["\x1b[2Jdpo [/red] " + "long " * 20]), 80)
    assert "\x1b" not in text and "[/red]" in text and all(len(line) <= 80 for line in text.splitlines())


def test_a_pipe_gets_the_markdown(monkeypatch, tmp_path, capsys):
    one = board([gap(0.3, 0.001)])
    for row in one.rows:
        row.values = {name: {} for name in NAMES}
    monkeypatch.setattr("plo.leaderboards.read", lambda *a, **k: one)
    monkeypatch.setattr("plo.tracking.Tracker", lambda *a, **k: None)
    monkeypatch.setattr(reports, "console", Console(file=io.StringIO(), force_terminal=True, width=80))
    reports.leaderboard(out=tmp_path, metric=[])
    assert "Better than reference" in reports.console.file.getvalue() and "| variant |" not in capsys.readouterr().out
    monkeypatch.setattr(reports, "console", Console(file=io.StringIO(), width=80))
    reports.leaderboard(out=tmp_path, metric=[])
    assert "| variant |" in capsys.readouterr().out and "| variant |" in (tmp_path / "leaderboard.md").read_text()


def test_no_cell_of_the_csv_is_a_formula():
    evil = ['=HYPERLINK("http://x")', "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", " =1", "-0.5"]
    one = board([gap(-0.3, 1e-4) for _ in evil], names=("reward", "=metric"), variants=evil)
    for row in one.rows[1:]:
        row.metrics["reward"] = Spread(-0.5, math.nan, 1)
    rows = list(csv.reader(io.StringIO(to_csv(one))))
    for row in rows:
        for cell in row:
            formula = cell.lstrip()[:1] in ("=", "+", "-", "@")
            assert not formula or float(cell) is not None  # a number like -0.5 stays one
    assert [row[0] for row in rows[2:]] == [f"'{text}" for text in evil[:5]] + ["-0.5"]
    assert "'=metric" in rows[0] and rows[2][rows[0].index("reward")] == "-0.5"
