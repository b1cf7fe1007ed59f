"""MLflow's client, imported on first use."""

import contextlib
import logging
import os
import shutil
import socket
import sqlite3
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from plo.tracking.borrowed import ENVIRONMENT, check_mlflow
from plo.tracking.patience import Patient, TrackingError, shown

__all__ = ["TrackingError", "import_mlflow", "make_sqlite_store", "open_client"]


@cache
def import_mlflow():
    """Import MLflow (which takes a second) without its telemetry, progress bars, log of migrations and retries."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow
    import mlflow.entities

    check_mlflow()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # MLflow logs 40 lines of SQL for each error that it also raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return mlflow


def open_client(uri: str, *, patient: bool = False) -> Patient:
    """Open MLflow's client of a store.

    Args:
        patient: wait for a server that does not answer. Otherwise the address may be wrong, and that is an error at once.

    Raises:
        TrackingError: the server cannot be reached.
    """
    if not patient:
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
    """Raise an error if nothing answers at the address of a tracking server."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=10).close()
        except OSError as error:
            raise TrackingError(
                f"The MLflow server {shown(uri)} cannot be reached: {error}. Start it, or name another with --store."
            ) from error
