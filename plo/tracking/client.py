"""MLflow's client: imported on first use, patient with a busy SQLite file, and with errors in one sentence."""

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

from plo.errors import PloError
from plo.tracking.borrowed import check_mlflow

T = TypeVar("T")
BUSY_SECONDS = 60.0  # how long a SQLite file that another process holds is waited for
PAUSE_SECONDS = 0.5  # between two attempts at a locked file


class TrackingError(PloError, RuntimeError):
    """The MLflow store or experiment cannot be used. The message names it and the remedy."""


@cache
def import_mlflow():
    """MLflow, imported on first use (a second), without telemetry, progress bars and migration chatter."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow
    import mlflow.entities

    check_mlflow()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It logs 40 lines of SQL for each error that it raises as well, and plo words those.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return mlflow


class Patient:
    """An object each of whose methods is called `patiently`: MLflow's client, or a `Reader`."""

    def __init__(self, target: Any, uri: str):
        self._target, self._uri = target, uri

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if not callable(attribute):
            return attribute
        return lambda *arguments, **keywords: patiently(partial(attribute, *arguments, **keywords), self._uri)


def patiently(call: Callable[[], T], uri: str) -> T:
    """Return `call()`, made again and again while another process holds the SQLite file.

    A call must be one transaction; those of MLflow's client are, and it rolls back before it raises.

    Raises:
        TrackingError: the file is still held after `BUSY_SECONDS`.
    """
    import tenacity  # 50 ms, which a command that reads no store need not spend

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_locked),
        stop=tenacity.stop_after_delay(BUSY_SECONDS),
        wait=tenacity.wait_fixed(PAUSE_SECONDS),
    )
    try:
        return retrying(call)
    except tenacity.RetryError as error:
        raise TrackingError(held(uri)) from error.last_attempt.exception()


def is_locked(error: Exception) -> bool:
    """Whether SQLite, or MLflow over it, says that another process holds the file."""
    text = str(error)
    return "database is locked" in text or "database table is locked" in text


def held(uri: str) -> str:
    """What to do about a SQLite file that another process holds."""
    file = uri.removeprefix("sqlite:///")
    return (
        f"The MLflow store {file} was held by another process for more than {BUSY_SECONDS:.0f} s (database is locked). "
        f"End what writes to it (`fuser {file}` lists the processes; a database browser with an open transaction is one) "
        f"and start the same command again: it goes on where it was."
    )


def open_client(uri: str) -> Patient:
    """MLflow's client of a store.

    Raises:
        TrackingError: the server cannot be reached.
    """
    _reach(uri)
    return Patient(import_mlflow().MlflowClient(tracking_uri=uri), uri)


def make_sqlite_store(file: Path) -> None:
    """Make a fresh SQLite store elsewhere and move it into place whole.

    MLflow builds its tables in dozens of migrations; killed between two, it leaves a file that no later start
    can open (seen in 4 of 14 kills, MLflow 3.17).
    """
    folder = file.with_name(file.name + ".new")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed here; this one holds the lock
    folder.mkdir()
    made, copy = folder / "made.db", folder / "copy.db"
    import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
    closing = contextlib.closing
    with closing(sqlite3.connect(made)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)  # a file of its own, which no connection of MLflow's holds open
    copy.replace(file)
    shutil.rmtree(folder, ignore_errors=True)


def _reach(uri: str) -> None:
    """Fail at once on a tracking server that is not there: MLflow itself would try again for minutes."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=10).close()
        except OSError as error:
            raise TrackingError(
                f"The MLflow server {uri} cannot be reached: {error}. Start it, or name another with --store."
            ) from error
