"""MLflow's client, imported on first use. It waits while a SQLite file is busy, and its errors are one sentence long."""

import contextlib
import logging
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from plo.errors import PloError
from plo.faults import on_disk
from plo.tracking.borrowed import ENVIRONMENT, check_mlflow

T = TypeVar("T")
BUSY_SECONDS = 60.0  # longest wait for a SQLite file that another process has locked
PAUSE_SECONDS = 0.5  # between two attempts at a locked file


class TrackingError(PloError, RuntimeError):
    """The MLflow store or experiment cannot be used. The message names it and the remedy."""


@cache
def import_mlflow():
    """Import MLflow (which takes a second) without its telemetry, progress bars and log of migrations."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow
    import mlflow.entities

    check_mlflow()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # MLflow logs 40 lines of SQL for each error that it also raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return mlflow


class Patient:
    """Wrapper whose methods are those of MLflow's client or of a `Reader`, each called `patiently`."""

    def __init__(self, target: Any, uri: str):
        self._target, self._uri = target, uri

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if not callable(attribute):
            return attribute
        return lambda *arguments, **keywords: patiently(partial(attribute, *arguments, **keywords), self._uri)


def patiently(call: Callable[[], T], uri: str) -> T:
    """Return `call()`, repeated while another process holds the SQLite file locked.

    A call must be one transaction. Those of MLflow's client are, and the client rolls back before it raises.

    Raises:
        TrackingError: the file is still locked after `BUSY_SECONDS`.
        DiskFault: its disk is full or cannot be written.
    """
    import tenacity  # takes 50 ms, which commands that read no store save

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_locked),
        stop=tenacity.stop_after_delay(BUSY_SECONDS),
        wait=tenacity.wait_fixed(PAUSE_SECONDS),
    )
    try:
        with on_disk(Path(file) if (file := uri.removeprefix("sqlite:///")) != uri else uri):
            return retrying(call)
    except tenacity.RetryError as error:
        raise TrackingError(held(uri)) from error.last_attempt.exception()


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


def open_client(uri: str) -> Patient:
    """Open MLflow's client of a store.

    Raises:
        TrackingError: the server cannot be reached.
    """
    _reach(uri)
    return Patient(import_mlflow().MlflowClient(tracking_uri=uri), uri)


def make_sqlite_store(file: Path) -> None:
    """Make a new SQLite store elsewhere and move it into place when it is complete.

    MLflow builds its tables in dozens of migrations. A process that is killed between two of them leaves a file that
    cannot be opened again (seen in 4 of 14 kills, MLflow 3.17).
    """
    folder = file.with_name(file.name + ".new")
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process; this one holds the lock
    folder.mkdir()
    # MLflow keeps a connection to a file of this process that failed, for example because the disk was full.
    made, copy = folder / f"{uuid4().hex}.db", folder / "copy.db"
    import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
    closing = contextlib.closing
    with closing(sqlite3.connect(made)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)  # a new file, which no connection of MLflow holds open
    copy.replace(file)
    shutil.rmtree(folder, ignore_errors=True)


def _reach(uri: str) -> None:
    """Fail at once if a tracking server does not answer; MLflow itself would retry for minutes."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=10).close()
        except OSError as error:
            raise TrackingError(
                f"The MLflow server {uri} cannot be reached: {error}. Start it, or name another with --store."
            ) from error
