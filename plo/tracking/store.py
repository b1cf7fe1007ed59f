"""An MLflow experiment in a store: found or made, searched, written to, read from. No other module imports MLflow."""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
from filelock import FileLock

from plo.errors import PloError
from plo.faults import disk_fault

STORE = "plo.db"


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

    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def store_uri(store: str | Path | None = None) -> str:
    """The store as MLflow's URI: `store`, else MLFLOW_TRACKING_URI, else `plo.db` in the working folder.

    A path means a SQLite file; it is made absolute, so that a process in another folder finds the same one.
    """
    store = str(store or os.environ.get("MLFLOW_TRACKING_URI") or STORE)
    if store.startswith("sqlite:///"):
        store = store.removeprefix("sqlite:///")
    return store if "://" in store else f"sqlite:///{Path(store).expanduser().resolve()}"


class Store:
    """An MLflow experiment in a store, both made if they do not exist.

    Args:
        store: a SQLite file, or any MLflow tracking URI; see `store_uri`.
        experiment: the experiment's name.
        create: False when reading: a missing store or experiment is then an error.

    Raises:
        TrackingError: the store cannot be reached or opened, or the experiment is missing or deleted.
    """

    def __init__(self, store: str | Path | None = None, experiment: str = "plo", *, create: bool = True):
        self.uri, self.experiment = store_uri(store), experiment
        file = Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:///") else None
        if file is None:
            _reach(self.uri)
        elif file.is_dir():
            raise TrackingError(f"The MLflow store {file} is a folder: name a file in it, {file / STORE}.")
        elif not create and not file.exists():
            raise TrackingError(f"There is no MLflow store {file}. Run `plo compare` first, or give --store.")
        elif create:
            file.parent.mkdir(parents=True, exist_ok=True)
        # The lock is for what must happen once: making the store, the experiment, a comparison, an attempt.
        lock_name = hashlib.sha256(self.uri.encode()).hexdigest()[:16]
        self._lock = FileLock(f"{file or Path(tempfile.gettempdir(), 'plo-' + lock_name)}.lock")
        try:
            with self._lock if create else contextlib.nullcontext():
                if file and not file.exists():
                    _make_sqlite_store(file)
                self._client = import_mlflow().MlflowClient(tracking_uri=self.uri)
                found = self._client.get_experiment_by_name(experiment)
                if found is None and create:
                    artifacts = (file.parent / "mlartifacts").as_uri() if file else None
                    self._client.create_experiment(experiment, artifact_location=artifacts)
                    found = self._client.get_experiment_by_name(experiment)
                names = [] if found else [e.name for e in self._client.search_experiments()]
        except Exception as error:
            if fault := disk_fault(error):
                raise TrackingError(f"The MLflow store {self.uri} cannot be opened: {fault}") from error
            reason = str(error).strip().split("\n")[0]
            upgrade = f"Run `mlflow db upgrade {self.uri}`, or" if "database schema" in reason else "Mend it, or"
            raise TrackingError(
                f"The MLflow store {self.uri} cannot be opened: {type(error).__name__}: {reason} "
                f"{upgrade} name another with --store."
            ) from error
        if found is None:
            raise TrackingError(
                f"There is no experiment {experiment!r} in {self.uri}. It holds: {', '.join(sorted(names))}."
            )
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"The experiment {experiment!r} in {self.uri} was deleted. Choose another name, or bring it "
                f"back with `mlflow experiments restore --experiment-id {found.experiment_id}`."
            )
        self._id = found.experiment_id

    def table(self, run_id: str, name: str) -> pd.DataFrame:
        """A table of a run, recorded by `CellRun.table`.

        Raises:
            TrackingError: the run has no such table.
        """
        try:
            recorded = self._read(run_id, name)
        except Exception as error:
            raise TrackingError(f"Run {run_id} in {self.uri} has no table {name}: {error}") from error
        return pd.DataFrame(recorded["data"], columns=recorded["columns"])

    def data_input(self, run_id: str, source: str, digest: str, context: str = "training") -> None:
        """Show the data set and its digest (its first 36 characters: MLflow's limit) in MLflow's run page."""
        entities = import_mlflow().entities
        data = entities.Dataset(source, digest[:36], "plo", json.dumps({"source": source, "digest": digest}))
        tag = entities.InputTag("mlflow.data.context", context)
        self._client.log_inputs(run_id, datasets=[entities.DatasetInput(data, [tag])])

    def _search(self, query: str) -> list:
        """All runs of the experiment that match, newest first."""
        runs, token = [], None
        while token is None or token:
            order = ["attributes.start_time DESC"]
            page = self._client.search_runs([self._id], query, order_by=order, page_token=token)
            runs, token = runs + list(page), page.token or ""
        return runs

    def _children(self, parent_id: str, kind: str = "cell") -> list:
        return self._search(f"tags.`mlflow.parentRunId` = '{parent_id}' and tags.`plo.kind` = '{kind}'")

    def _create_run(self, name: str, tags: Mapping[str, Any]) -> str:
        texts = {key: str(value)[:8000] for key, value in tags.items() if value is not None}
        return self._client.create_run(self._id, tags=texts, run_name=name).info.run_id

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Record nested parameters as flat ones."""
        known = self._client.get_run(run_id).data.params  # MLflow refuses to write a parameter twice
        make = import_mlflow().entities.Param
        new = [make(key, str(value)[:6000]) for key, value in _flat(params).items() if key not in known]
        for start in range(0, len(new), 100):
            self._client.log_batch(run_id, params=new[start : start + 100])

    def _planned(self, run_id: str) -> dict[str, str]:
        recorded = any(file.path == "cells.json" for file in self._client.list_artifacts(run_id))
        return self._read(run_id, "cells.json") if recorded else {}

    def _read(self, run_id: str, name: str) -> Any:
        """A JSON artifact."""
        with tempfile.TemporaryDirectory() as folder:
            return json.loads(Path(self._client.download_artifacts(run_id, name, folder)).read_text("utf-8"))


def _make_sqlite_store(file: Path) -> None:
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


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"name": 1}} -> {"data.name": 1}, keys in the characters that MLflow allows."""
    flat = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, name + ".")
        else:
            flat[allowed_name(name)] = value
    return flat


def allowed_name(name: str) -> str:
    """The name in the characters that MLflow allows, and no longer than it allows."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:250]
