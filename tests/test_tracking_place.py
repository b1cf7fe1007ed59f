"""A store that is moved, copied, busy, or another user's; and reading it without MLflow."""

import math
import multiprocessing
import os
import shutil
import sqlite3
import threading
from pathlib import Path

import pandas as pd
import pytest

from plo.tracking import MissingFiles, Tracker, TrackingError, patience, runs, store, tables
from plo.tracking.runs import ClientReader, SqliteReader

FORK = multiprocessing.get_context("fork")
FRAME = pd.DataFrame({"prompt_id": [0, 1], "reward": [0.25, 0.5]})


def record(path, losses=("reference", "dpo"), name="one"):
    """A comparison whose cells have a table, curves and a trained model's folder."""
    tracker = Tracker(path)
    parent = tracker.comparison(name, f"key-{name}", {"name": name}, cells={loss: loss for loss in losses})
    for loss in losses:
        cell = tracker.start_cell(parent, loss, f"{loss} seed 0", {"plo.seed": 0}, {"lr": "0.1"})
        cell.log({"reward": math.nan, "kl": math.inf}, 1)
        cell.log({"reward": 0.5}, 2)
        cell.table(FRAME, "samples.json")
        folder = Path(path).parent / "runs" / loss
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(loss)
        cell.folder(folder)
        cell.finish({"kl": 2.0})
    tracker.end_comparison(parent, ok=True)
    return tracker


@pytest.fixture
def recorded(tmp_path):
    process = FORK.Process(
        target=record, args=(tmp_path / "there" / "plo.db",)
    )  # MLflow keeps addresses of a process's runs
    process.start()
    process.join(120)
    return Tracker(tmp_path / "there" / "plo.db")


def files(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_sqlite_file_is_read_as_mlflow_reads_it(recorded):
    direct, through = SqliteReader(recorded.file), ClientReader(recorded._client)
    assert direct.experiments() == through.experiments()
    for tags in ({"plo.kind": "cell"}, {"plo.kind": "comparison", "plo.key": "key-one"}, {"plo.kind": "none"}):
        one, other = direct.search(recorded._id, tags), through.search(recorded._id, tags)
        assert one == other
    (run, _) = direct.search(recorded._id, {"plo.kind": "cell"})
    assert run.params == {"lr": "0.1"} and run.metrics == {"reward": 0.5, "kl": 2.0} and run.status == "FINISHED"
    assert direct.artifacts(run.run_id) == through.artifacts(run.run_id)
    for reader in (direct, through):
        (first, nan), last = reader.history(run.run_id, "reward")
        assert first == 1 and math.isnan(nan) and last == (2, 0.5)
    recorded._client.delete_run(run.run_id)
    assert run.run_id not in {one.run_id for one in direct.search(recorded._id, {})}


def test_a_copied_store_is_whole_and_writes_into_its_own_folder(recorded, tmp_path):
    there, here = recorded.file.parent, tmp_path / "here"
    shutil.copytree(there, here)
    before = files(there)
    copy = Tracker(here / "plo.db", create=False)
    cells = copy.cells()
    assert [cell.folder for cell in cells] == [here / "runs" / "reference", here / "runs" / "dpo"]
    assert copy._folder(cells[0].run_id).is_relative_to(here) and len(tables(cells, "samples.json")) == 2
    # goes on in the copy: a comparison of its own, and a loss added to the one that was copied
    writer = record(here / "plo.db", ["ipo"])
    assert [cell.folder.name for cell in writer.cells("one")] == ["reference", "dpo", "ipo"]
    assert {Path(cell._tracker._folder(cell.run_id)).parents[1] for cell in writer.cells()} == {here / "mlartifacts"}
    assert files(there) == before and len(Tracker(there / "plo.db", create=False).cells()) == 2
    reader = ClientReader(writer._client)
    addresses = [reader.artifacts(run.run_id) for run in reader.search(writer._id, {"plo.kind": "cell"})]
    assert all(address.startswith((here / "mlartifacts").as_uri()) for address in addresses)  # MLflow's page finds them


def test_other_experiments_of_the_store_keep_their_addresses(recorded, tmp_path):
    address = "file:///data/team/mlartifacts"
    number = recorded._client.create_experiment("not of plo", artifact_location=address)
    run = recorded._client.create_run(number)
    here = tmp_path / "here"
    shutil.copytree(recorded.file.parent, here)
    copy = Tracker(here / "plo.db")
    assert copy._client.get_experiment(copy._id).artifact_location == (here / "mlartifacts").as_uri()
    assert copy._client.get_experiment(number).artifact_location == address
    assert copy._client.get_run(run.info.run_id).info.artifact_uri.startswith(address)


def test_a_moved_store_that_recorded_absolute_folders(recorded, tmp_path):
    """Earlier versions recorded the trained model's absolute path."""
    there, here = recorded.file.parent, tmp_path / "moved"
    for cell in recorded.cells():
        recorded._client.set_tag(cell.run_id, "plo.folder", str(cell.folder))
    there.rename(here)
    for tracker in (Tracker(here / "plo.db", create=False), Tracker(here / "plo.db")):
        assert [cell.folder.read_text() if cell.folder.is_file() else (cell.folder / "config.json").read_text()
                for cell in tracker.cells()] == ["reference", "dpo"]  # fmt: skip
        assert all(cell.folder.is_relative_to(here) for cell in tracker.cells())
        assert len(tables(tracker.cells(), "samples.json")) == 2
    assert {cell.tags["plo.folder"] for cell in Tracker(here / "plo.db").cells()} == {"runs/reference", "runs/dpo"}
    assert not there.exists()


def test_a_store_moved_without_its_files_reads_them_where_they_are(recorded, tmp_path):
    (tmp_path / "alone").mkdir()
    moved = Path(shutil.move(recorded.file, tmp_path / "alone" / "plo.db"))
    for tracker in (Tracker(moved, create=False), Tracker(moved)):
        assert len(tables(tracker.cells(), "samples.json")) == 2
    shutil.rmtree(tmp_path / "there" / "mlartifacts")
    (cell, _) = Tracker(moved, create=False).cells()
    with pytest.raises(MissingFiles, match=rf"files of run {cell.run_id} are not in .*mlartifacts.*next to the store"):
        cell.table("samples.json")
    with pytest.raises(MissingFiles, match="mlartifacts"):
        Tracker(moved, create=False).comparisons()[0].missing([cell])


def test_a_folder_outside_of_the_stores_is_recorded_absolute(recorded, tmp_path):
    assert recorded.recorded_path(tmp_path / "elsewhere") == str(tmp_path / "elsewhere")
    assert recorded.recorded_path(recorded.file.parent / "runs" / "x") == "runs/x"


def test_the_lock_of_a_server_is_in_the_users_own_folder(tmp_path, monkeypatch):
    """In the folder that all users share, whoever came first would own it, and nobody else could record."""
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "shared"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(store, "open_client", lambda uri, patient: _Server())
    mine = Tracker("http://server:5000")
    with mine._lock:
        assert Path(mine._lock.lock_file).is_relative_to(tmp_path / "mine")
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "yours"))
    assert Tracker("http://server:5000")._lock.lock_file != mine._lock.lock_file
    assert not (tmp_path / "shared").exists()


class _Server:
    """What an empty server's client says."""

    def search_experiments(self, **query):
        from mlflow.entities import Experiment
        from mlflow.store.entities import PagedList

        return PagedList([Experiment("1", "plo", "mlflow-artifacts:/1", "active")], None)


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(patience, "BUSY_SECONDS", 0.3)
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(runs, "LOCKED_SECONDS", 0.05)


def hold(file, until=None):
    """Hold a SQLite file as a database browser with an open transaction does; `until`: for how many seconds."""
    holder = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    if until is not None:
        threading.Timer(until, holder.close).start()
    return holder


def test_a_file_that_another_process_holds_is_waited_for(recorded, brief, monkeypatch):
    monkeypatch.setattr(patience, "BUSY_SECONDS", 30)
    hold(recorded.file, until=0.4)
    assert len(Tracker(recorded.file, create=False).cells()) == 2
    hold(recorded.file, until=0.4)
    record(recorded.file, ["ipo"])


def test_a_file_that_stays_held_is_one_sentence_with_its_remedy(recorded, brief):
    holder = hold(recorded.file)
    for act in (lambda: Tracker(recorded.file, create=False), lambda: Tracker(recorded.file), recorded.cells):
        with pytest.raises(
            TrackingError, match=r"plo\.db was locked by another process .*fuser .*same command"
        ) as caught:
            act()
        assert "upgrade" not in str(caught.value) and "\n" not in str(caught.value)
    holder.close()
    assert len(recorded.cells()) == 2


def test_a_call_of_mlflows_that_meets_a_lock_is_made_again(brief):
    calls = []

    class Busy:
        def log_batch(self, run_id, metrics):
            calls.append(metrics)
            if len(calls) < 4:
                raise RuntimeError("(sqlite3.OperationalError) database is locked\n[SQL: INSERT ...]")
            return "written"

        def get_run(self, run_id):
            raise RuntimeError("(sqlite3.OperationalError) database is locked\n[SQL: SELECT ...]")

        def set_tag(self, run_id, name, value):
            calls.append(name)
            raise ValueError("something else")

    patient = patience.Patient(Busy(), "sqlite:////some/plo.db")
    assert patient.log_batch("run", metrics=[1]) == "written" and calls == [[1]] * 4
    with pytest.raises(TrackingError, match=r"/some/plo\.db was locked"):
        patient.get_run("run")
    with pytest.raises(ValueError, match="something else"):
        patient.set_tag("run", "a", "b")
    assert calls[4:] == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to any file")
def test_a_store_that_may_only_be_read(recorded):
    recorded.file.chmod(0o444)
    assert len(Tracker(recorded.file, create=False).cells()) == 2
