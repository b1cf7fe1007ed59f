"""Patience with a store: calls wait while another process holds a SQLite file locked, or while a server does not answer."""

import contextlib
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from plo import interrupt
from plo.errors import PloError
from plo.faults import on_disk, reason
from plo.tracking.borrowed import NO_ANSWER, UNAVAILABLE

T = TypeVar("T")
BUSY_SECONDS = 60.0  # longest wait for a SQLite file that another process has locked
PAUSE_SECONDS = 0.5  # between two attempts at a locked file
AWAY_SECONDS = 900.0  # longest wait of a run for a server that does not answer
ENDING_SECONDS = 5.0  # the same after Ctrl-C
RETRY_SECONDS = 1.0  # between two calls of a server that does not answer
SAY_SECONDS = 60.0  # between two lines of the log about a server that does not answer
CAUSE = re.compile(
    r"Connection refused|Connection reset|Connection aborted|Connection broken|timed out|too many \d+ error responses"
    r"|No route to host|Name or service not known|Network is unreachable|server closed the connection"
)
log = logging.getLogger(__name__)


class TrackingError(PloError, RuntimeError):
    """The MLflow store or experiment cannot be used. The message names it and the remedy."""


class ServerAway(TrackingError):
    """The MLflow server did not answer for as long as plo waits. Nothing that was recorded is lost."""


class Patient:
    """Wrapper whose methods are those of MLflow's client or of a `Reader`, each called `patiently`."""

    def __init__(self, target: Any, uri: str):
        self._target, self._uri = target, uri

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if not callable(attribute):
            return attribute
        return lambda *arguments, **keywords: patiently(partial(attribute, *arguments, **keywords), self._uri)


_impatient: ContextVar[bool] = ContextVar("impatient", default=False)


@contextlib.contextmanager
def impatience() -> Iterator[None]:
    """Let calls in the block, in this thread, fail at once if the server does not answer."""
    token = _impatient.set(True)
    try:
        yield
    finally:
        _impatient.reset(token)


def patiently(call: Callable[[], T], uri: str) -> T:
    """Return `call()`, repeated while another process holds the SQLite file locked, or while the server does not answer.

    A call must be one transaction that may be made twice. Those of MLflow's client are, but for `create_run`, and the
    client rolls back before it raises.

    Raises:
        TrackingError: the file is still locked after `BUSY_SECONDS`.
        ServerAway: the server has not answered for `AWAY_SECONDS`.
        DiskFault: the store's disk is full or cannot be written.
    """
    absence = absence_of(uri)
    while True:
        try:
            answer = _once_unlocked(call, uri)
        except Exception as error:
            if _impatient.get() or not is_away(error, uri):
                raise
            absence.note(error)
            absence.wait()
        else:
            absence.end()
            return answer


class Absence:
    """Time during which a server does not answer, as all threads of this process know it. It is logged once a minute.

    The run as a whole waits `AWAY_SECONDS`, however many calls it makes during an absence.

    Attributes:
        since: time of the first call without an answer, in seconds since the epoch; None while the server answers.
    """

    def __init__(self, uri: str):
        self.uri = uri
        self._begin()

    def _begin(self) -> None:
        self.since: float | None = None
        self._reason = ""
        self._waiting: float | None = None  # since when the run waits
        self._told = -math.inf

    def note(self, error: BaseException, meanwhile: str | None = None) -> None:
        """Note a call without an answer.

        Args:
            meanwhile: what plo does during the absence, for the log; None if the caller waits.
        """
        found = CAUSE.search(str(error))
        self._reason = found[0] if found else reason(error, 100)
        if self.since is None:  # may be a connection that the server had closed: the next call opens another one
            self.since = time.time()
        elif meanwhile is not None and self._waiting is None:
            self._say(f"{self}. {meanwhile}")

    def wait(self, kept: str = "") -> None:
        """Sleep a moment before the next call.

        Args:
            kept: what becomes of the caller's records, for the error.

        Raises:
            ServerAway: the run has waited long enough.
        """
        self.check(kept)
        with interruptible(f"waiting for the MLflow server {shown(self.uri)}"):
            time.sleep(RETRY_SECONDS)

    def check(self, kept: str = "") -> None:
        """Log that the run waits, and raise `ServerAway` if it has waited long enough. See `wait`."""
        now = time.monotonic()
        if self._waiting is None:
            self._waiting, self._told = now, -math.inf
            return
        left = self._waiting + (ENDING_SECONDS if interrupt.requested() else AWAY_SECONDS) - now
        if left < 0:
            kept = kept or "Bring it back, and start the same command again: it continues where it stopped."
            raise ServerAway(f"{self}. {kept}")
        self._say(f"{self}. plo goes on trying until {_clock(time.time() + left)}.")

    def end(self) -> None:
        """Note a call that the server answered."""
        if self.since is not None:
            if self._told > -math.inf:
                log.warning("The MLflow server %s answers again.", shown(self.uri))
            self._begin()

    def __str__(self) -> str:
        since = _clock(self.since or time.time())
        return f"The MLflow server {shown(self.uri)} has not answered since {since} ({self._reason})"

    def _say(self, text: str) -> None:
        if time.monotonic() - self._told > SAY_SECONDS:
            self._told = time.monotonic()
            log.warning("%s", text)


_absences: dict[str, Absence] = {}


def absence_of(uri: str) -> Absence:
    """Return what this process knows about the server's absence."""
    return _absences.setdefault(uri, Absence(uri))


def is_away(error: BaseException, uri: str) -> bool:
    """Return whether an error of MLflow's client says that the server, or the database behind it, does not answer for now."""
    if uri.startswith("sqlite:"):
        return False
    return getattr(error, "error_code", None) == UNAVAILABLE or NO_ANSWER.search(str(error)) is not None


def is_locked(error: BaseException) -> bool:
    """Return whether an error of SQLite or of MLflow says that another process holds the file locked."""
    text = str(error)
    return "database is locked" in text or "database table is locked" in text


def held(uri: str) -> str:
    """Return the error message for a SQLite file that another process holds locked."""
    file = uri.removeprefix("sqlite:///")
    return (
        f"The MLflow store {file} was locked by another process for more than {BUSY_SECONDS:.0f} s (database is locked). "
        f"End the process that writes to it, such as a database browser with an open transaction (`fuser {file}` lists "
        f"processes), and start the same command again: it continues where it stopped."
    )


def shown(uri: str) -> str:
    """Return the address of a store without the password in it."""
    password = urlsplit(uri).password
    return uri.replace(f":{password}@", ":***@", 1) if password else uri


def interruptible(what: str) -> AbstractContextManager[None]:
    """Let Ctrl-C end the block at once, if this is the main thread and the run is not ending anyway."""
    main = threading.current_thread() is threading.main_thread()
    return interrupt.awaiting(what) if main and not interrupt.requested() else contextlib.nullcontext()


def _once_unlocked(call: Callable[[], T], uri: str) -> T:
    try:
        return call()
    except Exception as error:
        if not is_locked(error):
            raise
    import tenacity  # takes 50 ms

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_locked),
        stop=tenacity.stop_after_delay(BUSY_SECONDS),
        wait=tenacity.wait_fixed(PAUSE_SECONDS),
    )
    file = uri.removeprefix("sqlite:///")
    try:
        with on_disk(Path(file) if file != uri else shown(uri)):
            return retrying(call)
    except tenacity.RetryError as error:
        raise TrackingError(held(uri)) from error.last_attempt.exception()


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
