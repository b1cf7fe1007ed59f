"""Values of single prompts, from which others compute a leaderboard again."""

import gzip

import pandas as pd
import pytest
from typer.testing import CliRunner

from plo.cli import app
from plo.leaderboards import read
from plo.leaderboards.values import values_table, write_values
from plo.tracking import Tracker

SHARED = {"plo.data": "data", "plo.model": "model", "plo.evaluation": "evaluation"}


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    """dpo and a loss whose name a spreadsheet would compute, two seeds; two prompts, of which the first has two samples."""
    tracker = Tracker(tmp_path_factory.mktemp("store") / "plo.db")
    parent = tracker.comparison("c", "key-c", {})
    for place, loss in enumerate(("dpo", "=hinge")):
        for seed in (9, 10):
            own = SHARED | {"plo.loss": loss, "plo.variant": loss, "plo.seed": seed}
            cell = tracker.start_cell(parent, f"{loss}/{seed}", f"{loss} seed {seed}", own, {"lr": "0.1"})
            samples = {
                "prompt_id": [0, 0, 1], "sample": [0, 1, 0], "prompt": ["a", "a", "b"], "text": ["x", "y", "z"],
                "reward": [seed + 0.1, seed + 0.3, place / 3], "kl": [1.0, 2.0, 3.0],
            }  # fmt: skip
            cell.table(pd.DataFrame(samples), "samples.json")
            cell.finish({"reward": 0.5, "kl": 2.0})
    return tracker


def test_a_line_has_the_means_over_the_samples_of_a_prompt(tracker):
    frame = values_table(read(tracker, "c", "dpo"), ["reward"])
    assert list(frame) == ["row", "seed", "prompt", "reward"]
    lines = {(row[:3], seed, prompt): value for row, seed, prompt, value in frame.itertuples(index=False)}
    assert len(frame) == len(lines) == 8
    assert lines["dpo", "9", 0] == pytest.approx(9.2) and lines["=hi", "10", 0] == pytest.approx(10.2)
    assert lines["=hi", "9", 1] == 1 / 3 and lines["dpo", "10", 1] == 0


def test_files_have_all_digits_and_equal_bytes_and_no_formula(tracker, tmp_path):
    board = read(tracker, "c", "dpo")
    assert write_values(board, tmp_path / "a.csv.gz") == write_values(board, tmp_path / "b.csv") == 8
    write_values(board, tmp_path / "c.csv.gz")
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "c.csv.gz").read_bytes()
    text = (tmp_path / "b.csv").read_text()
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()).decode() == text
    assert (
        "0.3333333333333333" in text
        and "\n'=hinge" in text
        and sorted(p.name[0] for p in tmp_path.iterdir()) == list("abc")
    )


def test_the_command_writes_them(tracker, tmp_path):
    file, store = tmp_path / "values.csv", str(tracker.uri)
    arguments = [
        "leaderboard",
        "c",
        "--store",
        store,
        "--out",
        str(tmp_path),
        "--metric",
        "reward",
        "--values",
        str(file),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Values of single prompts: 8 lines" in " ".join(result.output.split())
    assert file.read_text().splitlines()[0] == "row,seed,prompt,reward"
