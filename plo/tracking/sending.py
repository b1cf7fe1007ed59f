"""Sending of what runs record: a thread per run sends its outbox in batches, and goes on trying while a server is away."""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from plo.caches import named_lock
from plo.errors import PloError
from plo.faults import DiskFault, disk_fault, reason
from plo.paths import text_digest
from plo.tracking import outbox as outboxes
from plo.tracking import patience
from plo.tracking.borrowed import REFUSALS
from plo.tracking.claims import ClaimLost, Claims
from plo.tracking.client import import_mlflow
from plo.tracking.outbox import Outbox, Record
from plo.tracking.patience import ServerAway, TrackingError, absence_of, impatience, interruptible, is_away, shown

BATCH_SECONDS = 1.0  # between two calls for the same run, so that one call has the metrics of many steps
log = logging.getLogger(__name__)


class Sender:
    """Sends the records of a run that this process is doing, in the order of recording.

    Attributes:
        ended: whether the end of the run is recorded.
    """

    def __init__(self, claims: Claims, run_id: str):
        self.run_id, self.ended = run_id, False
        self._claims, self._uri, self._scope = claims, claims.store.uri, claims.scope(run_id)
        self._outbox: Outbox | None = None
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._condition, self._urgent = threading.Condition(), threading.Event()

    def put(self, *record: Any) -> None:
        """Keep a record on disk, and send it soon.

        Raises:
            TrackingError: the store refuses an earlier record.
            OSError: the disk is full.
        """
        with self._condition:
            if self._error is not None:
                raise self._error
            self._add(record)

    def end(self, status: str, records: Sequence[Record] = ()) -> None:
        """Record the end of the run, after further records, and wait until the store has everything.

        Raises:
            ServerAway: the server does not answer. The records stay on disk, and the next process sends them.
            TrackingError: the store refuses a record.
            ClaimLost: another process has taken the run's unit over.
        """
        with self._condition:
            self.ended, self._error = True, None
            outbox = [self._add(record) for record in (*records, ["end", status])][-1]
            self._urgent.set()
        absence = absence_of(self._uri)
        with interruptible(f"waiting until {shown(self._uri)} has what run {self.run_id} recorded"), self._condition:
            while self._thread is not None and self._thread.is_alive():
                self._condition.wait(patience.RETRY_SECONDS / 2)
                if absence.since is not None:
                    try:
                        absence.check(_kept(outbox))
                    except ServerAway:
                        outbox.sync()
                        raise
            if self._error is not None:
                self._claims.release(self.run_id)
                raise self._error

    def discard(self) -> None:
        """Drop what is not sent yet, of a run that another process has taken over."""
        with self._condition:
            self.ended = True
            if self._outbox is not None:
                self._outbox.remove()

    def _add(self, record: Sequence[Any]) -> Outbox:
        if self._outbox is None:
            own = {"run": self.run_id, "store": text_digest(self._uri), "address": shown(self._uri)}
            self._outbox = Outbox.create(self.run_id, own | {"scope": self._scope})
        self._outbox.add(list(record))
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, args=[self._outbox], daemon=True, name="plo-records")
            self._thread.start()
        return self._outbox

    def _work(self, outbox: Outbox) -> None:
        """Send until nothing is left, or until something other than the server's absence prevents it."""
        absence = absence_of(self._uri)
        while True:
            self._urgent.wait(BATCH_SECONDS)
            error = None
            try:
                with impatience():
                    send_next(self._claims, outbox)
            except Exception as raised:
                if is_away(raised, self._uri):
                    absence.note(raised, f"Work goes on, and what it records is kept in {outbox.path.parent}.")
                    time.sleep(patience.RETRY_SECONDS)
                    continue
                error = raised
                if not isinstance(raised, PloError) or isinstance(raised, DiskFault):
                    error = TrackingError(_refused(raised, outbox, self._uri))
                    error.__cause__ = raised
            else:
                absence.end()
            with self._condition:
                if error is not None or outbox.is_empty:
                    self._error, self._thread = error, None
                    self._condition.notify_all()
                    return


def send_next(claims: Claims, outbox: Outbox) -> None:
    """Send the next records of an outbox, as many as one call takes. It is removed with the end of the run.

    Raises:
        ClaimLost: the run is not to be finished, because another process has taken its unit over.
        Exception: an error of MLflow's client.
    """
    records, position = outbox.next()
    client, entities, run_id = claims.store._client, import_mlflow().entities, outbox.header["run"]
    kind, *about = records[0]
    if kind == "end":
        if about[0] == "FINISHED":
            claims.settle(run_id, outbox.header["scope"])
        client.set_terminated(run_id, about[0])
        claims.release(run_id)
    elif kind == "text":
        client.log_text(run_id, about[1], about[0])
    else:
        metrics = [entities.Metric(*point) for kind, *about in records if kind == "metrics" for point in about[0]]
        tags = {about[0]: about[1] for kind, *about in records if kind == "tag"}
        client.log_batch(run_id, metrics=metrics, tags=[entities.RunTag(*tag) for tag in tags.items()])
    outbox.sent(position)
    if kind == "end":
        outbox.remove()


def send_left(claims: Claims) -> None:
    """Send what ended processes of this machine, or of others with the same PLO_HOME, recorded in a store but did not send.

    Raises:
        ServerAway: the server does not answer.
    """
    uri, sent = claims.store.uri, 0
    if not any(outboxes.folder().glob("*.jsonl")):
        return
    with named_lock("records", uri):  # a second process waits, and then finds everything sent
        for outbox in Outbox.left(text_digest(uri)):
            sent += not outbox.is_empty
            try:
                while outbox.next()[0]:
                    send_next(claims, outbox)
                outbox.remove()
            except ClaimLost:
                outbox.remove()
            except Exception as error:
                if getattr(error, "error_code", None) not in REFUSALS:
                    raise
                log.warning("%s It was put aside as %s.", _refused(error, outbox, uri), outbox.refuse())
    if sent:
        log.info("Sent what %d runs had recorded when their processes ended.", sent)


def _kept(outbox: Outbox) -> str:
    return f"What run {outbox.header['run']} recorded is kept in {outbox.path}, and the next start of the same command sends it."


def _refused(error: Exception, outbox: Outbox, uri: str) -> str:
    run = outbox.header["run"]
    if fault := disk_fault(error):
        return f"The MLflow store {shown(uri)} cannot take what run {run} recorded: {fault} {_kept(outbox)}"
    return f"The MLflow store {shown(uri)} refuses what run {run} recorded: {reason(error)}."
