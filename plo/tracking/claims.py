"""Claims: which of several processes, on one machine or many, does a unit of work, so that none is done twice.

A claim is an attempt's own run, which carries a heartbeat. MLflow has no compare-and-set, so processes take tickets, as in
Lamport's bakery algorithm: each makes its run, reads the tickets of all, writes one higher than the highest, and reads
again. The lowest ticket of a living process has the unit; runs without a ticket are waited for, which takes milliseconds.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from plo import interrupt
from plo.errors import PloError
from plo.machine import is_alive, machine, process
from plo.tracking.patience import impatience
from plo.tracking.runs import Run
from plo.tracking.store import Store

BEAT_SECONDS = 10.0  # between two heartbeats
STALE_SECONDS = 60.0  # without a new heartbeat after which the process of a claim counts as lost
UNWATCHED_SECONDS = 30.0  # between two looks at a claim after which the watch over its heartbeat begins anew
OLD_SECONDS = 900.0  # age of a heartbeat that needs no watch: clocks of machines differ by less
WAIT_SECONDS = 2.0  # between two looks at a unit that another process has
SAY_SECONDS = 60.0  # between two lines of the log about that
CHOOSING_SECONDS = 0.02  # between two looks at a run whose ticket is not written yet
TICKET, BEAT, MACHINE, PROCESS = "plo.ticket", "plo.heartbeat", "plo.machine", "plo.process"
SUPERSEDED = "plo.superseded"
_HERE: set[str] = set()  # attempts of this process, through whichever tracker
log = logging.getLogger(__name__)


class Held(PloError, RuntimeError):
    """Raised for a unit that is finished, or that a living process is doing. `run` is the attempt that has it."""

    def __init__(self, run: Run):
        self.run = run
        self.finished = run.status == "FINISHED"
        state = "is finished" if self.finished else f"is being done by {holder(run)}"
        super().__init__(f"{run.name} {state}.")


class ClaimLost(PloError, RuntimeError):
    """Raised in a process that was so long without a sign of life that another one took its unit over."""


def holder(run: Run) -> str:
    """Return the process that has a claim, as "process 41 of machine host"."""
    pid = run.tags.get(PROCESS, "?").partition(":")[0]
    return f"process {pid} of machine {run.tags.get(MACHINE, '?').partition(' ')[0]}"


@dataclass
class Claims:
    """Claims of this process in a store, and its view of those of others.

    Args:
        store: the store whose runs are the claims.
        send_left: sends what ended processes recorded and did not send, so that the units which they finished count.
    """

    store: Store
    send_left: Callable[["Claims"], None]
    _active: dict[str, Mapping[str, str]] = field(default_factory=dict)  # {run id: scope}
    _lost: set[str] = field(default_factory=set)
    _watched: dict[str, tuple[str, float, float]] = field(default_factory=dict)  # heartbeat, first and last seen
    _thread: threading.Thread | None = None

    def take(self, scope: Mapping[str, str], name: str, tags: Mapping[str, object]) -> str:
        """Return the run id of a new attempt, which this process now has. Runs that earlier attempts left are closed.

        Args:
            scope: tags that every attempt at the unit has, and nothing else, by the names that `Store._search` takes.

        Raises:
            Held: the unit is finished, or a living process is doing it.
        """
        self._refuse(*self.look(scope))
        own, ticket = self._enter(name, tags, scope)
        while True:
            runs, living = self.look(scope, own)
            finished = [run for run in runs if run.status == "FINISHED"]
            ahead = [run for run in living if (number(run) or ticket + 1, run.run_id) < (ticket, own)]
            if finished or ahead:
                self.store._client.delete_run(own)
                raise Held((finished or ahead)[0])
            if all(number(run) is not None for run in living):
                break
            time.sleep(CHOOSING_SECONDS)
        for run in runs:
            if run not in living:
                self.close(run)
        self._active[own] = scope
        _HERE.add(own)
        self._beat_from_now_on()
        return own

    def first(self, scope: Mapping[str, str], name: str, tags: Mapping[str, object]) -> str:
        """Return the run that all processes share, which is made if it is missing: the one with the lowest ticket."""
        known, own = self._runs(scope), None
        if not any(_is_set(run) for run in known):
            own, _ = self._enter(name, tags, scope)
            while not all(_is_set(run) for run in self.look(scope, own)[1]):
                time.sleep(CHOOSING_SECONDS)
            known = self._runs(scope)
        winner = min((number(run) or 0, run.run_id) for run in known if _is_set(run))[1]
        if own not in (None, winner):
            self.store._client.delete_run(own)
        return winner

    def waiting(self) -> Callable[[Held], None]:
        """Return a function that waits a moment for what another process has, and says so every minute."""
        told = -math.inf

        def wait(held: Held) -> None:
            nonlocal told
            if time.monotonic() - told > SAY_SECONDS:
                told = time.monotonic()
                log.info("waiting: %s", held)
            with interrupt.awaiting(f"waiting for {held.run.name}"):
                time.sleep(WAIT_SECONDS)

        return wait

    def check(self, run_id: str) -> None:
        """Raise `ClaimLost` if another process has taken the attempt over."""
        if run_id in self._lost:
            raise ClaimLost(
                f"Run {run_id} was without a heartbeat for {STALE_SECONDS:.0f} s, and another process took its work over."
            )

    def scope(self, run_id: str) -> Mapping[str, str]:
        """Return the tags that every attempt at the unit of an attempt has, as `take` received them."""
        return self._active.get(run_id, {})

    def settle(self, run_id: str, scope: Mapping[str, str]) -> None:
        """Check, right before an attempt is closed as finished, that it still has its unit.

        Raises:
            ClaimLost: another process has taken the unit over, or even finished it.
        """
        for run in self._runs(scope) if scope else ():
            closed = run.status not in ("RUNNING", "FINISHED")  # finished: by a call whose answer was lost
            if run.run_id == run_id and (closed or SUPERSEDED in run.tags):
                self._lost.add(run_id)
            if run.run_id != run_id and run.status == "FINISHED":
                self._lost.add(run_id)
                self.store._client.set_tag(run_id, SUPERSEDED, "true")
                self.store._client.set_terminated(run_id, "KILLED")
        self.check(run_id)

    def release(self, run_id: str) -> None:
        """Stop the heartbeat of an attempt that is closed."""
        self._active.pop(run_id, None)
        _HERE.discard(run_id)

    def look(self, scope: Mapping[str, str], own: str = "") -> tuple[list[Run], list[Run]]:
        """Return the attempts at a unit but one's own, and those of living processes among them.

        They are read once more when a process is found lost: it may have finished the unit after the first reading, and its
        last records may still lie on this machine.
        """
        lost: set[str] = set()
        while True:
            runs = [run for run in self._runs(scope) if run.run_id != own]
            living = [run for run in runs if self.is_live(run)]
            found = {run.run_id for run in runs if _is_open(run) and run not in living}
            if found <= lost:
                return runs, living
            lost |= found
            self.send_left(self)

    def is_live(self, run: Run) -> bool:
        """Return whether the process of a running attempt is alive, as far as this process can know.

        On this machine the process itself is looked for. Otherwise, and where a process hangs, the heartbeat must have
        stayed the same for `STALE_SECONDS` of repeated looks, which no difference between clocks disturbs.
        """
        if not _is_open(run) or MACHINE not in run.tags:  # an earlier version made no claims
            return False
        here = run.tags[MACHINE] == machine()
        if here and run.tags.get(PROCESS) == process():
            return run.run_id in _HERE or number(run) is None
        if here and not is_alive(run.tags.get(PROCESS, "")):
            return False
        beat, now = run.tags.get(BEAT, "0"), time.monotonic()
        known, since, last = self._watched.get(run.run_id, ("", now, now))
        if known != beat or now - last > UNWATCHED_SECONDS:
            known, since = beat, now
        self._watched[run.run_id] = (known, since, now)
        return now - since <= STALE_SECONDS and (here or time.time() - float(beat) <= OLD_SECONDS)

    def close(self, run: Run) -> None:
        """Close the attempt of a lost process as KILLED, and mark an attempt that did not finish as superseded."""
        if run.status == "FINISHED":
            return
        try:
            if SUPERSEDED not in run.tags:
                self.store._client.set_tag(run.run_id, SUPERSEDED, "true")
            if _is_open(run):
                self.store._client.set_terminated(run.run_id, "KILLED")
        except Exception:  # MLflow's, for a run that its process has withdrawn meanwhile
            if self.store._client.get_run(run.run_id).info.lifecycle_stage != "deleted":
                raise

    def _runs(self, scope: Mapping[str, str]) -> list[Run]:
        return self.store._search(**scope)

    def _refuse(self, runs: list[Run], living: list[Run]) -> None:
        for run in runs:
            if run.status == "FINISHED" or (run in living and number(run) is not None):
                raise Held(run)

    def _enter(self, name: str, tags: Mapping[str, object], scope: Mapping[str, str]) -> tuple[str, int]:
        """Make a run, and write its ticket after it can be seen."""
        own = self.store._create_run(name, {MACHINE: machine(), PROCESS: process(), BEAT: f"{time.time():.1f}", **tags})
        ticket = 1 + max((number(run) or 0 for run in self._runs(scope)), default=0)
        self.store._client.set_tag(own, TICKET, str(ticket))
        return own, ticket

    def _beat_from_now_on(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._beat, daemon=True, name="plo-heartbeat")
            self._thread.start()

    def _beat(self) -> None:
        while self._active:
            time.sleep(BEAT_SECONDS)
            for run_id in [*self._active]:
                try:
                    with impatience():
                        run = self.store._client.get_run(run_id)
                        if run_id in self._active and run.info.status != "RUNNING":
                            self._lost.add(run_id)
                            self._active.pop(run_id, None)
                            continue
                        self.store._client.set_tag(run_id, BEAT, f"{time.time():.1f}")
                except Exception as error:  # the next beat may succeed
                    log.debug("no heartbeat for run %s: %s", run_id, error)


def number(run: Run) -> int | None:
    """Return the ticket of an attempt; None while it is not written."""
    return int(run.tags[TICKET]) if TICKET in run.tags else None


def _is_open(run: Run) -> bool:
    return run.status in ("RUNNING", "SCHEDULED")


def _is_set(run: Run) -> bool:
    """Return whether a shared run counts: it has its ticket, or an earlier version, which had none, made it."""
    return TICKET in run.tags or MACHINE not in run.tags
