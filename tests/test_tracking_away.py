"""A tracking server that is away for a while, and processes that end before they have sent what they recorded."""

import errno
import logging
import multiprocessing
import os
import select
import signal
import socket
import socketserver
import threading
import time
from urllib.parse import urlsplit

import pandas as pd
import pytest

from plo import interrupt
from plo.tracking import Held, ServerAway, Tracker, TrackingError, claims, outbox, patience

FORK = multiprocessing.get_context("fork")
FRAME = pd.DataFrame({"prompt_id": [0, 1], "reward": [0.25, 0.5]})


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        with socket.create_connection(self.server.behind) as there:
            while True:
                ready, _, _ = select.select([self.request, there], [], [], 0.05)
                for one in ready:
                    data = one.recv(65536)
                    if not data or self.server.state == "shut" or (self.server.state == "mute" and one is there):
                        return
                    (there if one is self.request else self.request).sendall(data)
                if self.server.state == "shut":
                    return


class Door(socketserver.ThreadingTCPServer):
    """Way to a server: "open"; "shut", as if the server were away; or "mute": it hears, and its answers are lost."""

    daemon_threads = True

    def __init__(self, uri):
        super().__init__(("127.0.0.1", 0), Handler)
        where = urlsplit(uri)
        self.behind, self.state = (where.hostname, where.port), "open"
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()

    def later(self, seconds, state="open"):
        threading.Timer(seconds, lambda: setattr(self, "state", state)).start()


@pytest.fixture
def door(sqlite_server, tmp_path, monkeypatch):
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.1)
    with Door(sqlite_server) as door:
        yield door
        door.shutdown()


@pytest.fixture
def tracker(door, tmp_path):
    return Tracker(door.uri, str(tmp_path))


@pytest.fixture
def parent(tracker):
    return tracker.comparison("one", "key", {"data": "pocket"})


def records():
    return [path.name for path in outbox.folder().iterdir()]


def test_training_goes_on_without_the_server_and_all_is_there_afterwards(door, tracker, parent, caplog):
    cell = tracker.start_cell(parent, "a", "dpo seed 0")
    cell.log({"loss": 1.0}, 0)
    door.state = "shut"
    started = time.monotonic()
    for step in range(1, 40):
        cell.log({"loss": 1 / step, "kl": float("nan")}, step)
    cell.table(FRAME, "samples.json")
    cell.tag("plo.notes", "[]")
    assert time.monotonic() - started < 1  # nothing of it has waited
    time.sleep(2)
    door.later(1)
    cell.finish({"loss": 0.5})
    (read,) = tracker.cells()
    assert read.status == "FINISHED" and read.history("loss").keys() == set(range(40)) and len(read.history("kl")) == 39
    assert read.metrics["loss"] == 0.5 and read.tags["plo.notes"] == "[]"
    pd.testing.assert_frame_equal(read.table("samples.json"), FRAME)
    assert f"The MLflow server {door.uri} has not answered since " in caplog.text
    assert "Work goes on, and what it records is kept in" in caplog.text and "answers again" in caplog.text
    assert records() == []


def test_reads_and_claims_wait(door, tracker, parent, caplog):
    door.state = "shut"
    door.later(1)
    cell = tracker.start_cell(parent, "a", "dpo seed 0")
    door.state = "shut"
    door.later(1)
    assert [run.run_id for run in tracker._search(kind="cell")] == [cell.run_id]
    said = [record.getMessage() for record in caplog.records if "goes on trying until" in record.getMessage()]
    assert len(said) == 2 and "(Connection aborted)" in said[0]  # at once; then once a minute
    cell.finish()


def test_a_run_waits_once_however_many_calls_it_makes(door, tracker, monkeypatch):
    monkeypatch.setattr(patience, "AWAY_SECONDS", 1.0)
    door.state = "shut"
    with pytest.raises(ServerAway, match="has not answered since .* start the same command again"):
        tracker.comparisons()
    started = time.monotonic()
    for _ in range(3):
        with pytest.raises(ServerAway):
            tracker.comparisons()
    assert time.monotonic() - started < 0.5
    door.state = "open"
    assert tracker.comparisons() == []
    door.state = "shut"
    door.later(0.5)
    assert tracker.comparisons() == []  # a new absence, a new wait


def test_after_ctrl_c_a_run_waits_for_seconds_only(door, tracker, parent, monkeypatch):
    monkeypatch.setattr(patience, "ENDING_SECONDS", 0.5)
    cell = tracker.start_cell(parent, "a", "dpo seed 0")
    door.state = "shut"
    monkeypatch.setattr(interrupt, "_received", signal.SIGINT)
    started = time.monotonic()
    cell.fail(KeyboardInterrupt())  # raises nothing: the interruption is what the user must read
    assert time.monotonic() - started < 3


def test_an_answer_that_is_lost_makes_nothing_twice(door, tracker, parent):
    door.state = "mute"
    door.later(1)
    cell = tracker.start_cell(parent, "a", "dpo seed 0")
    cell.log({"loss": 1.0}, 1)
    door.state = "mute"
    door.later(2.5)
    cell.finish({"loss": 2.0})
    (run,) = tracker._search(kind="cell")
    assert run.status == "FINISHED"
    history = tracker._client.get_metric_history(cell.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (1, 2.0)]


def train(door, experiment, ready, finish):
    """Record a cell whose server goes away, and end without it."""
    tracker = Tracker(door.uri, experiment)
    cell = tracker.start_cell(tracker.comparison("one", "key", {"data": "pocket"}), "a", "dpo seed 0")
    door.state = "shut"  # in this process alone
    ready.wait(30)
    cell.log({"loss": 1.0}, 1)
    cell.table(FRAME, "samples.json")
    patience.AWAY_SECONDS = 0.5
    if finish:
        with pytest.raises(ServerAway, match=r"recorded is kept in /.*records/\w+\.jsonl, and the next start of"):
            cell.finish({"loss": 2.0})
        cell.fail(ServerAway("away"))  # as the runner does with any error: the cell is finished all the same
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def lost(door, tracker, tmp_path):
    """A function that lets a process end with its records unsent, and returns the run's id."""

    def lose(finish):
        began = FORK.Event()
        process = FORK.Process(target=train, args=(door, str(tmp_path), began, finish))
        process.start()
        while not tracker._search(kind="cell") or "plo.ticket" not in tracker._search(kind="cell")[0].tags:
            time.sleep(0.1)
        time.sleep(0.5)
        door.state = "shut"
        began.set()
        process.join(60)
        assert process.exitcode == (0 if finish else -signal.SIGKILL)
        door.state = "open"
        assert len(records()) == 1
        return tracker._search(kind="cell")[0].run_id

    return lose


def test_a_cell_that_was_finished_without_the_server_is_finished_at_the_next_start(door, tracker, parent, lost, caplog):
    caplog.set_level(logging.INFO)
    run = lost(finish=True)
    again = Tracker(door.uri, tracker.experiment)
    assert again.finished(parent) == {"a": run} and records() == []
    assert "Sent what 1 runs had recorded" in caplog.text
    (cell,) = again.cells()
    assert cell.metrics == {"loss": 2.0} and cell.history("loss") == {1: 2.0} and len(cell.table("samples.json")) == 2
    with pytest.raises(Held, match="is finished"):
        again.start_cell(parent, "a", "dpo seed 0")


def test_a_worker_that_has_long_started_sends_what_its_neighbour_left(tracker, parent, lost):
    lost(finish=True)
    with pytest.raises(Held, match="is finished"):
        tracker.start_cell(parent, "a", "dpo seed 0")


def test_nothing_that_log_returned_from_is_lost_with_a_killed_process(door, tracker, parent, lost):
    run = lost(finish=False)
    again = Tracker(door.uri, tracker.experiment)
    assert again._reader.history(run, "loss") == [(1, 1.0)] and records() == []
    assert len(again.table(run, "samples.json")) == 2
    again.start_cell(parent, "a", "dpo seed 0").finish()  # the cell itself is done again
    assert sorted(one.status for one in again._search(kind="cell")) == ["FINISHED", "KILLED"]


def test_a_superseded_run_is_not_finished_afterwards(door, tracker, parent, lost):
    run = lost(finish=True)
    tracker._client.set_tag(run, claims.SUPERSEDED, "true")  # by another machine
    tracker._client.set_terminated(run, "KILLED")
    again = Tracker(door.uri, tracker.experiment)
    assert again.finished(parent) == {} and again._client.get_run(run).info.status == "KILLED" and records() == []


def test_records_for_another_store_stay(door, tracker, parent, lost, database):
    lost(finish=True)
    Tracker(database, tracker.experiment)
    assert len(records()) == 1


def test_records_of_a_run_that_is_gone_are_put_aside(door, tracker, parent, lost, caplog):
    run = lost(finish=True)
    tracker._client.delete_run(run)
    Tracker(door.uri, tracker.experiment)
    assert records() == [f"{run}.refused"] and "refuses what run" in caplog.text


# --- the outbox, on files ---


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return tmp_path_factory.mktemp("store") / "plo.db"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))


@pytest.fixture
def file(database, home, tmp_path):
    return Tracker(database, str(tmp_path))


def steps(path, experiment, pipe):
    tracker = Tracker(path, experiment)
    cell = tracker.start_cell(tracker.comparison("one", "key", {}), "a", "dpo seed 0")
    for step in range(100_000):
        cell.log({"loss": step / 7, "kl": 0.1}, step)
        pipe.send(step)
        time.sleep(0.001)


def test_killed_at_any_moment(file):
    file.comparison("one", "key", {})
    for delay in (0.3, 0.9, 1.4):
        here, there = FORK.Pipe(duplex=False)
        process = FORK.Process(target=steps, args=(file.file, file.experiment, there))
        process.start()
        there.close()
        last = here.recv()
        time.sleep(delay)
        process.kill()
        process.join()
        while here.poll():
            try:
                last = here.recv()
            except EOFError:
                break
        again = Tracker(file.file, file.experiment)
        run = again._search(kind="cell")[0].run_id
        found = again._reader.history(run, "loss")
        assert len(found) in (last + 1, last + 2) and found == [(step, step / 7) for step in range(len(found))]


def test_the_metrics_of_many_steps_are_sent_at_once(file, monkeypatch):
    calls = []
    client = file._client._target
    monkeypatch.setattr(client, "log_batch", lambda run, metrics, tags: calls.append((len(metrics), len(tags))))
    cell = file.start_cell(file.comparison("one", "key", {}), "a", "dpo seed 0")
    calls.clear()
    for step in range(300):
        cell.log({f"metric {i}": 0.0 for i in range(4)}, step)
    for i in range(150):
        cell.tag(f"tag {i}", "x")
    cell.log({f"metric {i}": 0.0 for i in range(2500)}, 300)
    cell.finish()
    assert [sum(counts) for counts in zip(*calls, strict=True)] == [3700, 150]
    assert all(metrics + tags <= 1000 and tags <= 100 for metrics, tags in calls) and len(calls) <= 8


def test_what_the_store_refuses_is_an_error_of_the_run(file):
    cell = file.start_cell(file.comparison("one", "key", {}), "a", "dpo seed 0")
    file._client.delete_run(cell.run_id)
    cell.log({"loss": 1.0}, 1)
    with pytest.raises(TrackingError, match=f"refuses what run {cell.run_id} recorded"):
        cell.finish()
    cell.fail(TrackingError("refused"))


def test_a_full_disk_leaves_whole_records(home, monkeypatch):
    box = outbox.Outbox.create("run", {})
    box.add(["tag", "a", "b"])
    write = os.write

    def full(descriptor, content):
        if content.startswith(b"["):
            return write(descriptor, content[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(outbox.os, "write", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*run\.jsonl'"):
        box.add(["text", "x", "y"])
    monkeypatch.setattr(outbox.os, "write", write)
    box.add(["tag", "c", "d"])
    assert box.next()[0] == [["tag", "a", "b"], ["tag", "c", "d"]]
    box.remove()


def test_a_line_that_was_cut_short_is_no_record(home):
    box = outbox.Outbox.create("run", {"store": "s"})
    box.add(["tag", "a", "b"])
    box._file.write(b'["tag", "c"')
    assert list(outbox.Outbox.left("s")) == []  # its process lives
    box._file.close()
    (left,) = [one.next()[0] for one in outbox.Outbox.left("s")]
    assert left == [["tag", "a", "b"]]


def test_passwords_are_not_shown():
    assert patience.shown("postgresql://me:secret@host:1/db") == "postgresql://me:***@host:1/db"
    assert patience.shown("http://host:5000") == "http://host:5000"
