"""Runs of an MLflow experiment as plain values, read from a SQLite file without MLflow, or through MLflow's client.

Importing MLflow takes more processor time than the rest of a leaderboard, and its client queries the database several
times per run. A SQLite file is therefore read directly, with four queries for any number of runs.
"""

import math
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from plo.tracking.borrowed import check_tables
from plo.tracking.limits import whole_tags
from plo.tracking.patience import patiently
from plo.tracking.server import MOST_RUNS, histories, read_text

T = TypeVar("T")

_INFINITY = 1.7976931348623157e308  # what MLflow's SQL store writes for an infinite metric
LOCKED_SECONDS = 5.0  # longest wait of one query for another process; `client.patiently` repeats it


@dataclass(frozen=True)
class Run:
    """A recorded run."""

    run_id: str
    name: str
    status: str
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedExperiment:
    """An MLflow experiment. `active` is False if it was deleted; `artifacts` is where the folders of its runs are made."""

    id: str
    active: bool
    artifacts: str


class SqliteReader:
    """Reads MLflow's tables in a SQLite file; tested with MLflow 3.17.

    Raises:
        sqlite3.Error: the file is not such a database, or another process holds it locked (from every method).
    """

    def __init__(self, file: Path):
        self._file = file

    @cached_property
    def _connection(self) -> sqlite3.Connection:
        uri = f"file:{quote(str(self._file))}?mode=rw"  # never makes a file; a read-only one is opened for reading
        # Threads that fetch files use this connection too; SQLite serialises them.
        made = sqlite3.connect(uri, uri=True, timeout=LOCKED_SECONDS, isolation_level=None, check_same_thread=False)
        check_tables(made)
        return made

    def experiments(self) -> dict[str, RecordedExperiment]:
        """Return all experiments by name, including deleted ones."""
        rows = self._connection.execute(
            "SELECT name, experiment_id, lifecycle_stage, artifact_location FROM experiments"
        )
        return {name: RecordedExperiment(str(id), stage == "active", where or "") for name, id, stage, where in rows}

    def search(self, experiment: str, tags: Mapping[str, str]) -> list[Run]:
        """Return the runs of the experiment with this id that have all `tags`, newest first, without deleted runs."""
        having = "".join(
            " AND EXISTS (SELECT 1 FROM tags t WHERE t.run_uuid = r.run_uuid AND t.key = ? AND t.value = ?)"
            for _ in tags
        )
        wanted = f"FROM runs r WHERE r.experiment_id = ? AND r.lifecycle_stage = 'active'{having}"
        given = [int(experiment), *(text for tag in tags.items() for text in tag)]
        rows = self._connection.execute(
            f"SELECT run_uuid, name, status {wanted} ORDER BY start_time DESC, run_uuid", given
        )
        found = {id: Run(id, name or "", status) for id, name, status in rows}
        for table in ("tags", "params", "latest_metrics"):
            nan = "is_nan" if table == "latest_metrics" else "NULL"
            rows = self._connection.execute(
                f"SELECT run_uuid, key, value, {nan} FROM {table} WHERE run_uuid IN (SELECT run_uuid {wanted})", given
            )
            for id, key, value, is_nan in rows:
                if id in found:  # else a run that was made after the first query
                    kept = value if is_nan is None else _number(value, is_nan)
                    getattr(found[id], table.removeprefix("latest_"))[key] = kept
        return [replace(run, tags=whole_tags(run.tags)) for run in found.values()]

    def artifacts(self, run_id: str) -> str:
        """Return the address of a run's folder of files."""
        row = self._connection.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", [run_id]).fetchone()
        return row[0] or "" if row else ""

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Return (step, value) pairs of a metric, ordered by step and then by time."""
        rows = self._connection.execute(
            "SELECT step, value, is_nan FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step, timestamp",
            [run_id, metric],
        )
        return [(step, _number(value, is_nan)) for step, value, is_nan in rows]

    def histories(self, run_id: str, metrics: Iterable[str]) -> dict[str, dict[int, float]]:
        """Return {metric: {step: value}} of a run, in the order of steps; one query for any number of metrics."""
        found: dict[str, dict[int, float]] = {name: {} for name in sorted(metrics)}
        rows = self._connection.execute(
            "SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ? ORDER BY step, timestamp", [run_id]
        )
        for name, step, value, is_nan in rows:
            if name in found:
                found[name][step] = _number(value, is_nan)
        return found

    def points(self, run_id: str, metrics: Iterable[str]) -> list[tuple[str, float, int, int]]:
        """Return every recorded point of a run's metrics, as (metric, value, step, time), in order."""
        rows = self._connection.execute(
            "SELECT key, value, step, timestamp, is_nan FROM metrics WHERE run_uuid = ? ORDER BY key, step, timestamp",
            [run_id],
        )
        return [(name, _number(value, is_nan), step, when) for name, value, step, when, is_nan in rows]

    def stage(self, run_id: str) -> str | None:
        """Return "active" or "deleted" for a run with this id; None if there is none."""
        row = self._connection.execute("SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", [run_id]).fetchone()
        return row and row[0]


class ClientReader:
    """Reads any store through an `MlflowClient`. What it fetches of finished runs it fetches once."""

    def __init__(self, client: Any):
        self._client = client
        self._artifacts: dict[str, str] = {}  # addresses by run
        self._finished: list[str] = []  # runs of the last searches, whose curves are fetched together
        self._histories: dict[tuple[str, str], list[tuple[int, float]]] = {}

    def experiments(self) -> dict[str, RecordedExperiment]:
        return {
            one.name: RecordedExperiment(one.experiment_id, one.lifecycle_stage == "active", one.artifact_location)
            for one in self._pages(self._client.search_experiments, view_type=3)  # 3: including deleted ones
        }

    def search(self, experiment: str, tags: Mapping[str, str]) -> list[Run]:
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        order = ["attributes.start_time DESC"]
        search = self._client.search_runs
        found = self._pages(search, experiment_ids=[experiment], filter_string=query, order_by=order)
        self._artifacts |= {run.info.run_id: run.info.artifact_uri for run in found}
        known = set(self._finished)
        self._finished += [
            run.info.run_id for run in found if run.info.status == "FINISHED" and run.info.run_id not in known
        ]
        return [
            Run(
                run.info.run_id, run.info.run_name, run.info.status, whole_tags(run.data.tags), run.data.params,
                {name: _number(value) for name, value in run.data.metrics.items()},
            )
            for run in found
        ]  # fmt: skip

    def artifacts(self, run_id: str) -> str:
        if run_id not in self._artifacts:
            self._artifacts[run_id] = self._client.get_run(run_id).info.artifact_uri
        return self._artifacts[run_id]

    def text(self, run_id: str, name: str) -> str:
        """Return the text of a file of a run."""
        address = self.artifacts(run_id)
        return self._patiently(partial(read_text, self._client, address, name))

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        if (run_id, metric) in self._histories:
            return self._histories[run_id, metric]
        if run_id in self._finished:
            first = self._finished.index(run_id) // MOST_RUNS * MOST_RUNS
            group = self._finished[first : first + MOST_RUNS]
            for run, points in (self._patiently(partial(histories, self._client, group, metric)) or {}).items():
                self._histories[run, metric] = [(step, _number(value)) for step, _, value in sorted(points)]
        if (run_id, metric) not in self._histories:
            points = self._client.get_metric_history(run_id, metric)
            return [(p.step, _number(p.value)) for p in sorted(points, key=lambda p: (p.step, p.timestamp))]
        return self._histories[run_id, metric]

    def histories(self, run_id: str, metrics: Iterable[str]) -> dict[str, dict[int, float]]:
        return {name: dict(self.history(run_id, name)) for name in sorted(metrics)}

    def points(self, run_id: str, metrics: Iterable[str]) -> list[tuple[str, float, int, int]]:
        found = ((name, p) for name in sorted(metrics) for p in self._client.get_metric_history(run_id, name))
        return sorted((name, _number(p.value), p.step, p.timestamp) for name, p in found)

    def stage(self, run_id: str) -> str | None:
        try:
            return self._client.get_run(run_id).info.lifecycle_stage
        except Exception as error:  # MLflow's
            if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, self._client.tracking_uri)

    @staticmethod
    def _pages(search: Any, **query: Any) -> list[Any]:
        found, token = [], None
        while token is None or token:
            page = search(page_token=token, **query)
            found, token = found + list(page), page.token or ""
        return found


Reader = SqliteReader | ClientReader


def _number(value: float, is_nan: bool = False) -> float:
    """Return the value of a metric, which MLflow's SQL store cannot write if it is not finite."""
    if is_nan:
        return math.nan
    return math.copysign(math.inf, value) if abs(value) >= _INFINITY else value
