"""Folders of files that runs carry: whole and checked, or not at all; the trained model of a cell, wherever it is."""

import shutil
from pathlib import Path

import pytest

from plo import caches, store
from plo.tracking import MODEL, ActiveRun, Artifact, ModelLost, Tracker

FILES = {"weights.bin": "12345", "sub/config.json": "{}"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def tracker(tmp_path):
    return Tracker(tmp_path / "there" / "plo.db")


def sealed(folder, files=FILES):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    store.seal(folder)
    return folder


def cell(tracker, folder, *, carried=True) -> ActiveRun:
    run = tracker.start_cell(tracker.comparison("one", "key", {}), "a", "dpo seed 0", {"plo.seed": 0})
    run.folder(folder)
    if carried:
        run.artifacts(folder, MODEL)
    run.finish()
    return run


def carried(tracker, run) -> tuple[Artifact, Path]:
    (found,) = tracker.cells()
    return Artifact.of(tracker, run.run_id, found.tags, MODEL), tracker._folder(run.run_id) / MODEL


def contents(folder):
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_comes_back_whole_and_takes_no_space_twice(tracker, tmp_path):
    trained = sealed(tmp_path / "runs")
    artifact, kept = carried(tracker, cell(tracker, trained))
    assert (kept / "weights.bin").samefile(trained / "weights.bin")
    assert artifact.fetch(tmp_path / "copy") is None
    assert contents(tmp_path / "copy") == contents(trained) and store.intact(tmp_path / "copy")
    assert not (tmp_path / "copy.part").exists()


def test_files_with_checksums_alongside_come_back_next_to_others(tracker, tmp_path):
    """As a stage's, whose folder also has checkpoints; and on a disk without hard links."""
    stage = tmp_path / "stage"
    store.write_json(stage / "policy.json", 1)
    sealed(stage / "checkpoint-2")
    (stage / "half.partial").write_text("")
    artifact, kept = carried(tracker, cell(tracker, stage))
    assert contents(kept).keys() == {"policy.json", "policy.json.sha256"}
    other = tmp_path / "other"
    sealed(other / "checkpoint-1")
    assert artifact.fetch(other) is None
    assert store.read_json(other / "policy.json") == 1 and store.intact(other / "checkpoint-1")


def test_without_hard_links_files_are_copied(tracker, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refused)
    trained = sealed(tmp_path / "runs")
    artifact, kept = carried(tracker, cell(tracker, trained))
    assert not (kept / "weights.bin").samefile(trained / "weights.bin")
    assert artifact.fetch(tmp_path / "copy") is None and contents(tmp_path / "copy") == contents(trained)


def test_a_damaged_or_incomplete_copy_is_not_taken(tracker, tmp_path, harm):
    artifact, kept = carried(tracker, cell(tracker, sealed(tmp_path / "runs")))
    whole = kept.rename(tmp_path / "whole")

    def fetched():
        wrong = artifact.fetch(tmp_path / "copy")
        assert wrong is not None and not (tmp_path / "copy").exists()
        return wrong

    assert "is missing" in fetched()
    for name, words in {"weights.bin": "is damaged in weights.bin", store.SUMS: ""}.items():
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(whole, kept)
        harm(kept / name)
        assert words in fetched()
    shutil.rmtree(kept)
    sealed(kept, FILES | {"weights.bin": "54321"})  # whole, but not what was recorded
    assert fetched() == "is not what the run recorded"


def test_names_that_lead_out_of_the_folder_are_refused(tracker, tmp_path):
    """Anyone who can write to a shared store writes its checksums."""
    artifact, kept = carried(tracker, cell(tracker, sealed(tmp_path / "runs")))
    for name in ("../../outside", "/outside"):
        (kept / store.SUMS).unlink()
        (kept / store.SUMS).write_text(f"{'0' * 64}  {name}\n")
        assert "which is outside it" in (artifact.fetch(tmp_path / "copy") or "")


def test_the_model_of_a_cell_is_where_it_was_trained_or_comes_from_the_store(tracker, tmp_path, harm, home):
    trained = sealed(tmp_path / "runs")
    run = cell(tracker, trained)
    (found,) = tracker.cells()
    assert found.model() == trained and not caches.entries(["trained"])
    harm(trained / "weights.bin")
    copy = found.model()
    assert copy == home / "trained" / run.run_id and contents(copy).keys() == contents(trained).keys()
    assert (copy / "weights.bin").read_text() == "12345"
    assert (trained / "weights.bin").exists()  # nothing that a user may want is removed
    assert [entry.key for entry in caches.entries(["trained"])] == [run.run_id]
    harm(copy / "weights.bin")
    assert (found.model() / "weights.bin").read_text() == "12345"  # fetched again
    sealed(trained, FILES | {"weights.bin": "54321"})  # another attempt's, with a like path on this machine
    assert found.model() == copy


def test_a_model_that_is_nowhere_is_an_error_that_names_both_places(tracker, tmp_path):
    trained = sealed(tmp_path / "runs")
    cell(tracker, trained, carried=False)
    (found,) = tracker.cells()
    assert found.model() == trained  # as stores of earlier versions have it
    shutil.rmtree(trained)
    lost = rf"dpo seed 0, {trained}, is missing, and in the store .*plo\.db it was not recorded: bring back a copy"
    with pytest.raises(ModelLost, match=lost):
        found.model()


def test_a_finished_stage_is_answered_with_what_it_recorded(tracker, tmp_path):
    parent = tracker.comparison("one", "key", {})
    folder = tmp_path / "stage"
    store.write_json(folder / "policy.json", 1)
    assert tracker.finished_stage("k") is None
    run = tracker.start_stage(parent, "k", "oracle")
    run.artifacts(folder, "stage")
    assert tracker.finished_stage("k") is None
    run.finish()
    again = tracker.start_stage(tracker.comparison("two", "key-2", {}), "k", "oracle")
    assert again == tracker.finished_stage("k") and again.fetch(tmp_path / "copy") is None
    assert store.read_json(tmp_path / "copy" / "policy.json") == 1
