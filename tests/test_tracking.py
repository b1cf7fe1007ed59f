"""Recording and reading back, on SQLite stores of their own."""

import math
import multiprocessing
import os
import signal
import sqlite3
import time

import numpy as np
import pandas as pd
import pytest

from plo.environment import environment
from plo.tracking import ActiveRun, Held, Tracker, TrackingError, store_uri, unrecorded
from plo.tracking.client import make_sqlite_store

FORK = multiprocessing.get_context("fork")  # the children need not import MLflow again


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    return Tracker(tmp_path_factory.mktemp("store") / "plo.db", "tests")


def race(path, key, barrier):
    barrier.wait(30)
    tracker = Tracker(path, "race")
    cells = {str(i): f"cell {i}" for i in range(4)}
    parent = tracker.comparison("one", "same-key", {"losses": ["dpo"]}, cells=cells)
    cell = tracker.start_cell(parent, str(key), f"cell {key}")
    for step in range(20):
        cell.log({"reward": step, "kl": 1.0}, step)
    cell.finish({"reward": 100.0 + key})


def test_four_processes_on_a_fresh_store(tmp_path):
    path, barrier = tmp_path / "fresh.db", FORK.Barrier(4)
    processes = [FORK.Process(target=race, args=(path, key, barrier)) for key in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    reader = Tracker(path, "race", create=False)
    (comparison,) = reader.comparisons()
    cells = comparison.cells()
    assert sorted(cell.metrics["reward"] for cell in cells) == [100.0, 101.0, 102.0, 103.0]
    assert all(len(cell.history("reward")) == 20 for cell in cells)
    assert comparison.missing(comparison.cells()) == []


def open_store(path):
    Tracker(path, "x")


def test_killed_while_making_the_store(tmp_path):
    for number, delay in enumerate((0.15, 0.4, 0.8)):
        path = tmp_path / f"{number}.db"
        process = FORK.Process(target=open_store, args=(path,))
        process.start()
        folder = path.with_name(path.name + ".new")
        while not folder.exists() and process.is_alive():
            time.sleep(0.01)
        time.sleep(delay)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert Tracker(path, "x").comparisons() == []
        assert not folder.exists()


def test_a_comparison_is_found_again_by_its_key(tracker):
    config = {"data": {"name": "sentiment"}, "losses": {"dpo + 0.2*sft": {"beta": 0.1}}, "seeds": [0, 1]}
    given = ("demo", "key-1", config, {"plo.data": "d1"}, {"a": "dpo, seed 0", "b": "dpo, seed 1"})
    first = tracker.comparison(*given)
    tracker.end_comparison(first, ok=False)
    again = tracker.comparison(*given)
    other = tracker.comparison("demo", "key-2", config)
    assert first == again != other
    (comparison,) = tracker.comparisons("key-1")
    assert comparison.config() == config and comparison.status == "RUNNING"
    assert comparison.missing(comparison.cells()) == ["dpo, seed 0", "dpo, seed 1"]
    assert {c.key for c in tracker.comparisons("demo")} == {"key-1", "key-2"}
    run = tracker._client.get_run(first)
    assert run.data.params["data.name"] == "sentiment"
    assert run.data.params["losses.dpo _ 0.2_sft.beta"] == "0.1"
    with pytest.raises(TrackingError, match=r"'nope'.*demo \(key-1\)"):
        tracker.comparisons("nope")


def lose(attempt, tracker):
    """Let an attempt look like that of a killed process."""
    tracker._client.set_tag(attempt.run_id, "plo.process", "1:0.00")
    tracker.claims.release(attempt.run_id)


def test_a_killed_attempt_is_superseded(tracker):
    parent = tracker.comparison("killed", "key-killed", {})
    killed = tracker.start_cell(parent, "a", "dpo")
    killed.log({"reward": 1.0}, 1)
    failed = tracker.start_cell(parent, "b", "ipo")
    failed.fail(ValueError("non-finite loss at step 3"))
    assert tracker.finished(parent) == {}

    lose(killed, tracker)
    second = tracker.start_cell(parent, "a", "dpo", params={"lr": 2e-4})
    second.log({"reward": 2.0}, 10)
    second.finish({"reward": 3.0})
    old = tracker._client.get_run(killed.run_id)
    assert old.info.status == "KILLED" and old.data.tags["plo.superseded"] == "true"
    assert tracker.finished(parent) == {"a": second.run_id}

    cells = {cell.key: cell for cell in tracker.cells("key-killed")}
    assert cells["a"].run_id == second.run_id and cells["a"].params["lr"] == "0.0002"
    assert cells["a"].history("reward") == {10: 3.0} and cells["a"].metrics["reward"] == 3.0
    assert cells["b"].status == "FAILED"
    assert cells["b"].tags["plo.error"] == "ValueError: non-finite loss at step 3"
    with pytest.raises(Held, match="dpo is finished"):
        tracker.start_cell(parent, "a", "dpo")
    assert tracker.finished(parent) == {"a": second.run_id}
    assert {c.key: c.run_id for c in tracker.cells("key-killed")}["a"] == second.run_id


def test_numbers_that_are_not_finite(tracker):
    cell = tracker.start_cell(tracker.comparison("nan", "key-nan", {}), "a", "x")
    cell.log({"kl": math.nan, "loss": math.inf, "margin": -math.inf, "reward": np.float32(0.5)}, 7)
    cell.log({"kl": 1.5}, 8)
    cell.finish()
    (read,) = tracker.cells("key-nan")
    assert read.metrics == {"kl": 1.5, "loss": math.inf, "margin": -math.inf, "reward": 0.5}
    assert math.isnan(read.history("kl")[7]) and read.history("kl")[8] == 1.5


def test_a_table_comes_back_exactly(tracker):
    cell = tracker.start_cell(tracker.comparison("table", "key-table", {}), "a", "x")
    texts = ["1", "2020-01-01", "a|b`c`\n<script>\u2028", "", "\U0001f600 \x00 nul"]
    kl = [0.1, 1 / 3, np.nan, 2e-300, 5]
    frame = pd.DataFrame({"prompt_id": range(5), "text": texts, "finished": [True] * 4 + [False], "kl": kl})
    cell.table(frame, "samples.json")
    tracker.data_input(cell.run_id, "sentiment", "d" * 64)
    cell.finish()
    (read,) = tracker.cells("key-table")
    pd.testing.assert_frame_equal(read.table("samples.json"), frame, check_exact=True)
    run = tracker._client.get_run(cell.run_id)
    assert run.data.tags["mlflow.loggedArtifacts"] == '[{"path": "samples.json", "type": "table"}]'
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 36
    with pytest.raises(TrackingError, match=r"other\.json"):
        read.table("other.json")


def test_errors_name_the_remedy(tracker, tmp_path):
    with pytest.raises(TrackingError, match=r"no MLflow store .*none\.db.*plo compare"):
        Tracker(tmp_path / "none.db", create=False)
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(TrackingError, match=r"no experiment 'other'.*Default, tests"):
        Tracker(tracker.uri, "other", create=False)
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at\n" * 100)
    with pytest.raises(TrackingError, match=r"text\.db cannot be opened.*--store"):
        Tracker(tmp_path / "text.db")
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9 cannot be reached"):
        Tracker("http://127.0.0.1:9")


def test_what_records_nothing_has_the_names_of_what_does():
    for nothing, kind in ((unrecorded(ActiveRun), ActiveRun), (unrecorded(Tracker), Tracker)):
        for name in (name for name in vars(kind) if not name.startswith("_") and callable(getattr(kind, name))):
            assert getattr(nothing, name)(1, x=2) is None
    assert unrecorded(ActiveRun).run_id is None
    for name in ("taable", "start_cell", "_client"):
        with pytest.raises(AttributeError, match=f"no method '{name}'"):
            getattr(unrecorded(ActiveRun), name)


def test_where_the_store_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri() == f"sqlite:///{tmp_path}/plo.db"
    assert store_uri("sqlite:///other.db") == f"sqlite:///{tmp_path}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert store_uri() == "http://server:5000" and store_uri("a.db") == f"sqlite:///{tmp_path}/a.db"


def test_the_fresh_store_is_whole(tmp_path):
    make_sqlite_store(tmp_path / "a.db")
    with sqlite3.connect(tmp_path / "a.db") as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    assert [p.name for p in tmp_path.iterdir()] == ["a.db"]


def test_environment(tmp_path):
    tags = environment(tmp_path)
    assert tags["plo.version.mlflow"].startswith("3.") and "plo.git" not in tags
    assert all(isinstance(value, str) and value for value in tags.values())


def test_a_list_of_planned_cells_that_was_cut_short_is_written_again(tmp_path, caplog):
    tracker = Tracker(tmp_path / "plo.db")
    run = tracker.comparison("a", "key", {}, cells={"1": "dpo seed 0"})
    (file,) = tmp_path.glob("mlartifacts/*/artifacts/cells.json")
    file.write_text(file.read_text()[:5])
    (found,) = Tracker(tmp_path / "plo.db", create=False).comparisons()
    assert found.planned() == {} and "no readable cells.json" in caplog.text
    assert tracker.comparison("a", "key", {}, cells={"2": "ipo seed 0"}) == run
    assert found.planned() == {"2": "ipo seed 0"}
