"""Claims: one process a unit, however many try at once; the units of lost processes are taken over."""

import multiprocessing
import time

import pytest

from plo.machine import is_alive
from plo.tracking import ClaimLost, Held, Tracker, claims
from plo.tracking.claims import Claims

FORK = multiprocessing.get_context("fork")
UNITS = [f"unit {i}" for i in range(6)]


@pytest.fixture
def tracker(tmp_path):
    return Tracker(tmp_path / "plo.db", "claims")


def work(store, experiment, barrier, done):
    """Try every unit, in the same order as every other process."""
    barrier.wait(120)
    tracker = Tracker(store, experiment)
    parent = tracker.comparison("race", "key", {})
    for unit in UNITS:
        try:
            attempt = tracker.start_cell(parent, unit, unit)
        except Held:
            continue
        time.sleep(0.05)
        attempt.finish({"reward": 1.0})
        done.put(unit)


def test_processes_that_start_at_once_share_the_units(store, tmp_path):
    experiment, barrier, done = str(tmp_path), FORK.Barrier(5), FORK.Queue()
    Tracker(store, experiment)
    workers = [FORK.Process(target=work, args=(store, experiment, barrier, done)) for _ in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert sorted(done.get(timeout=60) for _ in UNITS) == UNITS and done.empty()
    tracker = Tracker(store, experiment, create=False)
    (comparison,) = tracker.comparisons()
    assert sorted(cell.name for cell in comparison.cells()) == UNITS
    runs = tracker._search(kind="cell")
    assert [run.status for run in runs] == ["FINISHED"] * len(UNITS)  # those who came second have left no run


def hold(path, ready):
    tracker = Tracker(path, "claims")
    tracker.start_cell(tracker.comparison("lost", "key", {}), "a", "dpo seed 0")
    ready.set()
    time.sleep(60)


@pytest.fixture
def holder(tracker):
    """A process that does the cell `a` until it is killed."""
    ready = FORK.Event()
    process = FORK.Process(target=hold, args=(tracker.file, ready))
    process.start()
    assert ready.wait(120)
    yield process
    process.kill()
    process.join()


def test_the_cell_of_a_killed_process_is_taken_over_at_once(tracker, holder):
    parent = tracker.comparison("lost", "key", {})
    with pytest.raises(Held, match=f"dpo seed 0 is being done by process {holder.pid} of machine") as held:
        tracker.start_cell(parent, "a", "dpo seed 0")
    assert not held.value.finished
    holder.kill()
    holder.join()
    tracker.start_cell(parent, "a", "dpo seed 0").finish({"reward": 1.0})
    assert sorted(run.status for run in tracker._search(kind="cell")) == ["FINISHED", "KILLED"]


def finish_when_told(store, ready, told):
    """Do the cell `a` until told, finish it, and end."""
    tracker = Tracker(store, "claims")
    attempt = tracker.start_cell(tracker.comparison("lost", "key", {}), "a", "dpo seed 0")
    ready.set()
    told.wait(120)
    attempt.finish({"reward": 1.0})


@pytest.fixture
def ending(tracker, monkeypatch):
    """A process that finishes its cell and ends between the moment its run is read and the one it is looked for."""
    ready, told = FORK.Event(), FORK.Event()
    process = FORK.Process(target=finish_when_told, args=(tracker.file, ready, told))
    process.start()
    assert ready.wait(120)

    def ended(name):
        told.set()
        process.join()
        return is_alive(name)

    monkeypatch.setattr(claims, "is_alive", ended)
    yield process
    process.kill()
    process.join()


def test_a_unit_finished_while_another_process_enters_is_finished(tracker, ending, monkeypatch):
    parent = tracker.comparison("lost", "key", {})
    monkeypatch.setattr(Claims, "_refuse", lambda *look: None)  # as if the process had come before there was a run
    with pytest.raises(Held) as held:
        tracker.start_cell(parent, "a", "dpo seed 0")
    assert held.value.finished and ending.exitcode == 0
    assert [(run.status, run.metrics) for run in tracker._search(kind="cell")] == [("FINISHED", {"reward": 1.0})]


@pytest.mark.parametrize(
    "look",
    [
        lambda tracker, parent: tracker.is_free(parent, "cell", "a"),
        lambda tracker, parent: tracker.end_comparison(parent, ok=True),
    ],
    ids=["wait", "close"],
)
def test_a_unit_finished_after_its_run_was_read_is_not_closed_as_lost(tracker, ending, look):
    look(tracker, tracker.comparison("lost", "key", {}))
    assert ending.exitcode == 0
    assert [(run.status, run.metrics) for run in tracker._search(kind="cell")] == [("FINISHED", {"reward": 1.0})]


def test_a_shared_run_that_was_numbered_after_it_was_read_counts(tracker, monkeypatch):
    """Its process wrote the lowest ticket and ended, while this one chose."""
    scope, tags = {"kind": "comparison", "key": "k"}, {"plo.kind": "comparison", "plo.key": "k"}
    gone = tracker._create_run("one", {**tags, claims.MACHINE: claims.machine(), claims.PROCESS: "1:0.00"})

    def ended(name):
        tracker._client.set_tag(gone, claims.TICKET, "0")
        return False

    monkeypatch.setattr(claims, "is_alive", ended)
    assert tracker.claims.first(scope, "one", tags) == gone
    assert Tracker(tracker.file, "claims").claims.first(scope, "one", tags) == gone
    assert [run.run_id for run in tracker._search(kind="comparison")] == [gone]


def test_a_silent_process_of_another_machine_is_lost_once_it_was_watched(tracker, monkeypatch):
    parent = tracker.comparison("far", "key", {})
    far = tracker.start_cell(parent, "a", "dpo seed 0")
    monkeypatch.setattr(claims, "machine", lambda: "elsewhere 1")
    monkeypatch.setattr(claims, "STALE_SECONDS", 2.0)
    mine = Tracker(tracker.file, "claims")

    def beat(at):
        tracker._client.set_tag(far.run_id, claims.BEAT, f"{at:.1f}")

    def held():
        with pytest.raises(Held):
            mine.start_cell(parent, "a", "dpo seed 0")

    beat(time.time() - 600)  # a clock that is ten minutes late says nothing
    held()
    time.sleep(1.2)
    beat(time.time() - 599)
    held()  # a sign of life: the watch begins anew
    time.sleep(1.2)
    held()
    time.sleep(1.2)
    mine.start_cell(parent, "a", "dpo seed 0").finish({"reward": 2.0})
    with pytest.raises(ClaimLost, match="another process took its work over"):
        far.finish({"reward": 1.0})
    (cell,) = mine.cells()
    assert cell.status == "FINISHED" and cell.metrics["reward"] == 2.0
    assert [run.status for run in mine._search(kind="cell")].count("FINISHED") == 1


def test_after_a_gap_between_looks_the_watch_begins_anew(tracker, monkeypatch):
    parent = tracker.comparison("gap", "key", {})
    tracker.start_cell(parent, "a", "dpo seed 0")
    monkeypatch.setattr(claims, "machine", lambda: "elsewhere 1")
    monkeypatch.setattr(claims, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(claims, "UNWATCHED_SECONDS", 0.1)
    mine = Tracker(tracker.file, "claims")
    for _ in range(3):  # as of a process that trains a cell in between, or whose server was away
        with pytest.raises(Held):
            mine.start_cell(parent, "a", "dpo seed 0")
        time.sleep(0.2)


def until(condition):
    """Wait until a condition holds, as long as a slow machine may take."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def test_a_lost_process_learns_it_from_its_heartbeat(tracker, monkeypatch):
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.05)
    attempt = tracker.start_cell(tracker.comparison("beat", "key", {}), "a", "dpo seed 0")
    first = tracker._client.get_run(attempt.run_id).data.tags[claims.BEAT]
    until(lambda: float(tracker._client.get_run(attempt.run_id).data.tags[claims.BEAT]) > float(first))
    (run,) = tracker._search(kind="cell")
    tracker.claims.close(run)
    until(lambda: attempt.run_id in tracker.claims._lost)
    with pytest.raises(ClaimLost):
        attempt.log({"loss": 1.0}, 1)
    attempt.fail(ClaimLost("lost"))
    assert tracker._search(kind="cell")[0].status == "KILLED"


def test_a_unit_that_another_process_has_finished_meanwhile_is_not_finished_twice(tracker):
    parent = tracker.comparison("twice", "key", {})
    slow = tracker.start_cell(parent, "a", "dpo seed 0")
    tracker._client.set_tag(slow.run_id, "plo.process", "1:0.00")
    other = Tracker(tracker.file, "claims")
    tracker.claims.release(slow.run_id)
    other.start_cell(parent, "a", "dpo seed 0").finish({"reward": 2.0})
    tracker._client.set_terminated(slow.run_id, "RUNNING")  # as if the take-over had fallen between check and end
    tracker.claims._active[slow.run_id] = {"kind": "cell", "cell": "a", "parent": parent}
    with pytest.raises(ClaimLost):
        slow.finish({"reward": 1.0})
    (cell,) = other.cells()
    assert cell.metrics["reward"] == 2.0
    assert [run.status for run in other._search(kind="cell")].count("FINISHED") == 1


def test_processes_that_start_at_once_share_one_comparison(store, tmp_path):
    experiment, barrier, found = str(tmp_path), FORK.Barrier(6), FORK.Queue()
    Tracker(store, experiment)

    def begin():
        tracker = Tracker(store, experiment)
        barrier.wait(120)
        found.put(
            tracker.claims.first({"kind": "comparison", "key": "k"}, "one", {"plo.kind": "comparison", "plo.key": "k"})
        )

    workers = [FORK.Process(target=begin) for _ in range(6)]
    for worker in workers:
        worker.start()
    assert len({found.get(timeout=300) for _ in workers}) == 1
    for worker in workers:
        worker.join(120)
    assert len(Tracker(store, experiment)._search(kind="comparison")) == 1


def test_what_a_lost_process_left_is_closed_with_the_comparison(tracker):
    parent = tracker.comparison("end", "key", {})
    attempt = tracker.start_cell(parent, "a", "dpo seed 0")
    tracker._client.set_tag(attempt.run_id, "plo.process", "1:0.00")
    tracker.claims.release(attempt.run_id)
    tracker.end_comparison(parent, ok=False)
    assert [run.status for run in tracker._search(kind="cell")] == ["KILLED"]


def test_a_process_that_waits_closes_the_attempt_of_a_lost_one(tracker, monkeypatch):
    """As its watch is long enough, while the worker that runs the unit next looks for the first time."""
    parent = tracker.comparison("wait", "key", {})
    tracker.start_cell(parent, "a", "dpo seed 0")
    monkeypatch.setattr(claims, "machine", lambda: "elsewhere 1")
    monkeypatch.setattr(claims, "STALE_SECONDS", 2.0)
    waiting = Tracker(tracker.file, "claims")
    assert not waiting.is_free(parent, "cell", "a")
    time.sleep(1.2)
    assert not waiting.is_free(parent, "cell", "a")
    time.sleep(1.2)
    assert waiting.is_free(parent, "cell", "a")
    Tracker(tracker.file, "claims").start_cell(parent, "a", "dpo seed 0").finish()
    assert sorted(run.status for run in waiting._search(kind="cell")) == ["FINISHED", "KILLED"]


def test_an_attempt_that_its_process_has_withdrawn_needs_no_closing(tracker):
    parent = tracker.comparison("withdrawn", "key", {})
    attempt = tracker.start_cell(parent, "a", "dpo seed 0")
    [run] = tracker._search(kind="cell")
    tracker._client.delete_run(attempt.run_id)
    tracker.claims.close(run)  # MLflow refuses tags of a deleted run
    assert tracker._search(kind="cell") == []
