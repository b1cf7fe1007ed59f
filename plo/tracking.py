"""The one module that speaks to MLflow: recording a comparison and its cells, and reading them back.

A **comparison** is a parent run, a **cell** (one loss, one seed) a child of it, and so is a **stage**: what had to be trained
or computed before cells could run, recorded once a store. All tags are flat and begin
with `plo.`. A cell that did not end with status FINISHED does not count: what a killed process left behind is
superseded by the next attempt.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import socket
import sqlite3
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
from filelock import FileLock

STORE = "plo.db"
BESIDE = ("plo.notes.", "plo.lengths.", "plo.judge")  # tags of an evaluation's run that its cell shows as its own
_INFINITY = 1.7976931348623157e308  # what MLflow's SQL store writes for an infinite metric


class TrackingError(RuntimeError):
    """The MLflow store or experiment cannot be used. The message names it and the remedy."""


@cache
def _mlflow():
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


class Tracker:
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
                self._client = _mlflow().MlflowClient(tracking_uri=self.uri)
                found = self._client.get_experiment_by_name(experiment)
                if found is None and create:
                    artifacts = (file.parent / "mlartifacts").as_uri() if file else None
                    self._client.create_experiment(experiment, artifact_location=artifacts)
                    found = self._client.get_experiment_by_name(experiment)
                names = [] if found else [e.name for e in self._client.search_experiments()]
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise TrackingError(
                f"The MLflow store {self.uri} cannot be opened: {type(error).__name__}: {reason} "
                f"If another version of MLflow wrote it, run `mlflow db upgrade {self.uri}`; "
                f"else name another with --store."
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

    # --- recording -----------------------------------------------------------------------------------------

    def comparison(
        self,
        name: str,
        key: str,
        config: Mapping[str, Any],
        tags: Mapping[str, Any] | None = None,
        cells: Mapping[str, str] | None = None,
    ) -> str:
        """The run id of the comparison `key` (a digest of all that defines it): found again, or made.

        Args:
            config: nested; recorded as the artifact config.json and as flat parameters "data.name".
            cells: what is planned, {cell key: name}, so that a table can tell what is missing. Added to what
                was planned before: a comparison may grow by losses and seeds.
        """
        with self._lock:
            found = self._search(f"tags.`plo.kind` = 'comparison' and tags.`plo.key` = '{key}'")
            if found:
                run_id = found[0].info.run_id
            else:
                own = {"plo.kind": "comparison", "plo.key": key, "plo.comparison": name}
                run_id = self._create_run(name, own | dict(tags or {}))
            # Written again each time: the last process may have been killed between making the run and this.
            self._client.log_dict(run_id, json.loads(json.dumps(config, default=str)), "config.json")
            if cells is not None:
                self._client.log_dict(run_id, self._planned(run_id) | dict(cells), "cells.json")
            self._log_params(run_id, _flat(config))
            self._client.update_run(run_id, status="RUNNING")
        return run_id

    def finished(self, parent_id: str) -> dict[str, str]:
        """{cell key: run id} of the comparison's finished cells."""
        return {
            run.data.tags["plo.cell"]: run.info.run_id
            for run in reversed(self._children(parent_id))
            if run.info.status == "FINISHED"
        }

    def start_cell(
        self,
        parent_id: str,
        cell_key: str,
        name: str,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> "CellRun":
        """Start an attempt at a cell.

        Earlier attempts that did not finish get the tag plo.superseded, and those that still say RUNNING
        (their process was killed) the status KILLED. So one process at a time may run a cell.
        """
        return self._start("cell", self._children(parent_id), parent_id, cell_key, name, tags, params)

    def start_stage(
        self,
        parent_id: str,
        key: str,
        name: str,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> "CellRun | None":
        """Start recording a stage; None if any comparison of the store has it finished. Else as `start_cell`."""
        known = self._search(f"tags.`plo.kind` = 'stage' and tags.`plo.cell` = '{key}'")
        if any(run.info.status == "FINISHED" for run in known):
            return None
        return self._start("stage", known, parent_id, key, name, tags, params)

    def start_evaluation(
        self, parent_id: str, key: str, name: str, tags: Mapping[str, Any], params: Mapping[str, Any] | None = None
    ) -> "CellRun | None":
        """Start recording what an evaluation of level "model" finds of a cell; None if the comparison has it finished.

        Args:
            tags: `plo.of`: the cell's key; `plo.evaluation`: the evaluation's name; `plo.settings`: a digest of its settings.
        """
        known = self._children(parent_id, "evaluation")
        if any(run.data.tags["plo.cell"] == key and run.info.status == "FINISHED" for run in known):
            return None
        return self._start("evaluation", known, parent_id, key, name, tags, params)

    def stages(self, parent_id: str | None = None) -> list[dict[str, Any]]:
        """The stages of a comparison, or of all, oldest first: run_id, name, key, status, metrics (seconds, ...)."""
        of_parent = f"tags.`mlflow.parentRunId` = '{parent_id}' and " if parent_id else ""
        return [
            {
                "run_id": run.info.run_id,
                "name": run.info.run_name,
                "key": run.data.tags["plo.cell"],
                "status": run.info.status,
                "metrics": run.data.metrics,
            }
            for run in reversed(self._search(f"{of_parent}tags.`plo.kind` = 'stage'"))
        ]

    def _start(self, kind: str, known: list, parent_id: str, key: str, name: str, tags, params) -> "CellRun":
        with self._lock:
            for run in known:
                if run.data.tags.get("plo.cell") == key and run.info.status != "FINISHED":
                    self._client.set_tag(run.info.run_id, "plo.superseded", "true")
                    if run.info.status in ("RUNNING", "SCHEDULED"):
                        self._client.set_terminated(run.info.run_id, "KILLED")
            own = {"plo.kind": kind, "plo.cell": key, "mlflow.parentRunId": parent_id}
            run_id = self._create_run(name, own | dict(tags or {}))
        self._log_params(run_id, _flat(params or {}))
        return CellRun(self, run_id)

    def end_comparison(self, parent_id: str, ok: bool) -> None:
        """Close the comparison: FINISHED, or FAILED where a cell failed or is missing."""
        self._client.set_terminated(parent_id, "FINISHED" if ok else "FAILED")

    def data_input(self, run_id: str, source: str, digest: str, context: str = "training") -> None:
        """Show the data set and its digest (its first 36 characters: MLflow's limit) in MLflow's run page."""
        entities = _mlflow().entities
        data = entities.Dataset(source, digest[:36], "plo", json.dumps({"source": source, "digest": digest}))
        tag = entities.InputTag("mlflow.data.context", context)
        self._client.log_inputs(run_id, datasets=[entities.DatasetInput(data, [tag])])

    # --- reading -------------------------------------------------------------------------------------------

    def comparisons(self, select: str | None = None) -> list["Comparison"]:
        """The comparisons, oldest first; with `select`, those of that name, or whose key begins with it.

        Raises:
            TrackingError: `select` fits none; the message lists those there are.
        """
        found = []
        for run in reversed(self._search("tags.`plo.kind` = 'comparison'")):
            tags = run.data.tags
            own = (run.info.run_id, tags["plo.comparison"], tags["plo.key"], run.info.status)
            found.append(Comparison(*own, tags, self))
        chosen = [c for c in found if select is None or c.name == select or c.key.startswith(select)]
        if select is not None and not chosen:
            known = ", ".join(f"{c.name} ({c.key[:12]})" for c in found) or "none"
            raise TrackingError(f"No comparison in {self.uri} has name or key {select!r}. Known: {known}.")
        return chosen

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

    def cells(self, select: str | None = None) -> list["Cell"]:
        """The cells of the selected comparisons: of each, the finished attempt, or else the last one."""
        return [cell for comparison in self.comparisons(select) for cell in comparison.cells()]

    # --- MLflow --------------------------------------------------------------------------------------------

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
        known = self._client.get_run(run_id).data.params  # MLflow refuses to write a parameter twice
        make = _mlflow().entities.Param
        new = [make(key, str(value)[:6000]) for key, value in params.items() if key not in known]
        for start in range(0, len(new), 100):
            self._client.log_batch(run_id, params=new[start : start + 100])

    def _planned(self, run_id: str) -> dict[str, str]:
        recorded = any(file.path == "cells.json" for file in self._client.list_artifacts(run_id))
        return self._read(run_id, "cells.json") if recorded else {}

    def _read(self, run_id: str, name: str) -> Any:
        """A JSON artifact."""
        with tempfile.TemporaryDirectory() as folder:
            return json.loads(Path(self._client.download_artifacts(run_id, name, folder)).read_text("utf-8"))


class CellRun:
    """An attempt at a cell, being recorded. Made by `Tracker.start_cell`; `run_id` is MLflow's."""

    def __init__(self, tracker: Tracker, run_id: str):
        self.run_id = run_id
        self._tracker, self._client = tracker, tracker._client
        self._step = self._time = 0
        self._tables: list[dict[str, str]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a training step, at once (5 ms on SQLite). NaN and infinities are kept."""
        # Of two values at one step MLflow calls the later the latest, and at the same millisecond the larger.
        self._time = max(int(time.time() * 1000), self._time + 1)
        self._step = max(self._step, step)
        make = _mlflow().entities.Metric
        rows = [make(_key(name), float(value), self._time, step) for name, value in metrics.items()]
        for start in range(0, len(rows), 1000):
            self._client.log_batch(self.run_id, metrics=rows[start : start + 1000])

    def table(self, frame: pd.DataFrame, name: str) -> None:
        """Record a frame as a JSON table that MLflow's page shows; floats exact, NaN and infinities null."""
        data = [[_plain(value) for value in row] for row in frame.itertuples(index=False, name=None)]
        text = json.dumps({"columns": list(frame.columns), "data": data}, allow_nan=False)
        self._client.log_text(self.run_id, text, name)
        self._tables.append({"path": name, "type": "table"})
        self._client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps(self._tables))

    def text(self, content: str, name: str) -> None:
        """Record a text as a file."""
        self._client.log_text(self.run_id, content, name)

    def tag(self, name: str, value: str) -> None:
        """Set a flat tag."""
        self._client.set_tag(self.run_id, name, value)

    def artifact(self, path: str | Path) -> None:
        """Record a copy of a file, or of a folder with all that is in it."""
        log = self._client.log_artifacts if Path(path).is_dir() else self._client.log_artifact
        log(self.run_id, str(path))

    def data_input(self, source: str, digest: str, context: str = "training") -> None:
        """See `Tracker.data_input`."""
        self._tracker.data_input(self.run_id, source, digest, context)

    def finish(self, metrics: Mapping[str, float] | None = None) -> None:
        """Record the final numbers (at the last step logged) and close the run: now the cell counts."""
        if metrics:
            self.log(metrics, self._step)
        self._client.set_terminated(self.run_id, "FINISHED")

    def fail(self, error: BaseException) -> None:
        """Close the run as FAILED (KILLED if the user interrupted it), the traceback in error.txt."""
        self._client.set_tag(self.run_id, "plo.error", f"{type(error).__name__}: {error}"[:500])
        self._client.log_text(self.run_id, "".join(traceback.format_exception(error)), "error.txt")
        self._client.set_terminated(self.run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")


class Unrecorded:
    """Stands for a `Tracker` or a `CellRun` in a process that records nothing: takes every call, gives back None."""

    def __getattr__(self, name: str):
        return lambda *arguments, **keywords: None


@dataclass(frozen=True)
class Comparison:
    """A recorded comparison."""

    run_id: str
    name: str
    key: str
    status: str
    tags: dict[str, str]
    _tracker: Tracker

    def planned(self) -> dict[str, str]:
        """{cell key: name} of the cells it is to have; empty if that was not recorded."""
        return self._tracker._planned(self.run_id)

    def config(self) -> dict[str, Any]:
        """The configuration it was started with."""
        return self._tracker._read(self.run_id, "config.json")

    def cells(self) -> list["Cell"]:
        """Every cell that was ever started: its last finished attempt, or else its last one; with what evaluations found.

        Of an evaluation that ran with several settings (another judge, say) the latest count, for all cells alike.
        """
        best = {}
        for run in reversed(self._tracker._children(self.run_id)):  # oldest first
            key = run.data.tags["plo.cell"]
            if key not in best or run.info.status == "FINISHED" or best[key].info.status != "FINISHED":
                best[key] = run
        found = self._evaluations()
        return [self._cell(run, found.get(key, [])) for key, run in best.items()]

    def _evaluations(self) -> dict[str, list[Any]]:
        """{cell key: finished runs of evaluations of it}, one each evaluation."""
        runs = [r for r in self._tracker._children(self.run_id, "evaluation") if r.info.status == "FINISHED"]
        latest: dict[str, str] = {}
        for run in runs:  # newest first
            latest.setdefault(run.data.tags["plo.evaluation"], run.data.tags["plo.settings"])
        found: dict[str, dict[str, Any]] = {}
        for run in runs:
            name = run.data.tags["plo.evaluation"]
            if run.data.tags["plo.settings"] == latest[name]:
                found.setdefault(run.data.tags["plo.of"], {}).setdefault(name, run)
        return {key: list(by_name.values()) for key, by_name in found.items()}

    def missing(self) -> list[str]:
        """Names of the planned cells that were never started."""
        started = {cell.key for cell in self.cells()}
        return [name for key, name in self.planned().items() if key not in started]

    def _cell(self, run: Any, evaluations: list[Any]) -> "Cell":
        metrics, tags, tables = dict(run.data.metrics), dict(run.data.tags), {}
        for found in evaluations:
            metrics |= found.data.metrics
            tags |= {name: v for name, v in found.data.tags.items() if name.startswith(BESIDE)}
            tables |= dict.fromkeys(
                (file.path for file in self._tracker._client.list_artifacts(found.info.run_id)), found.info.run_id
            )
        metrics = {name: _unclipped(value) for name, value in metrics.items()}
        info = run.info
        own = (info.run_id, info.run_name, self.name, self.key, info.status)
        return Cell(*own, tags, run.data.params, metrics, self._tracker, tables)


@dataclass(frozen=True)
class Cell:
    """A recorded cell: `metrics` are the latest values, `status` is FINISHED for one that counts."""

    run_id: str
    name: str
    comparison: str
    comparison_key: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    _tracker: Tracker
    _tables: dict[str, str] = field(default_factory=dict)  # {name: run that recorded it}, of its evaluations

    @property
    def key(self) -> str:
        return self.tags["plo.cell"]

    def table(self, name: str) -> pd.DataFrame:
        """A table recorded by `CellRun.table`; see `Tracker.table`."""
        return self._tracker.table(self._tables.get(name, self.run_id), name)

    def history(self, metric: str) -> dict[int, float]:
        """{step: value} of a metric along training, in order of steps."""
        points = self._tracker._client.get_metric_history(self.run_id, metric)
        ordered = sorted(points, key=lambda point: (point.step, point.timestamp))
        return {point.step: _unclipped(point.value) for point in ordered}


def _make_sqlite_store(file: Path) -> None:
    """Make a fresh SQLite store elsewhere and move it into place whole.

    MLflow builds its tables in dozens of migrations; killed between two, it leaves a file that no later start
    can open (seen in 4 of 14 kills, MLflow 3.17).
    """
    folder = file.with_name(file.name + ".new")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed here; this one holds the lock
    folder.mkdir()
    made, copy = folder / "made.db", folder / "copy.db"
    _mlflow().MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
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
            flat[_key(name)] = value
    return flat


def _key(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:250]


def _plain(value: Any) -> Any:
    """A JSON value: NumPy scalars unwrapped, NaN and infinities as null."""
    value = value.item() if hasattr(value, "item") else value
    return None if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)) else value


def _unclipped(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= _INFINITY else value
