"""Runs of an MLflow experiment as plain values, read from a SQLite file without MLflow, or through MLflow's client.

Importing MLflow takes more processor time than the rest of a leaderboard, and its client queries the database several
times per run. A SQLite file is therefore read directly, with four queries for any number of runs.
"""

import math
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from plo.tracking.borrowed import check_tables
from plo.tracking.limits import whole_tags

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


class ClientReader:
    """Reads any store through an `MlflowClient`."""

    def __init__(self, client: Any):
        self._client = client

    def experiments(self) -> dict[str, RecordedExperiment]:
        return {
            one.name: RecordedExperiment(one.experiment_id, one.lifecycle_stage == "active", one.artifact_location)
            for one in self._pages(self._client.search_experiments, view_type=3)  # 3: including deleted ones
        }

    def search(self, experiment: str, tags: Mapping[str, str]) -> list[Run]:
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        order = ["attributes.start_time DESC"]
        return [
            Run(
                run.info.run_id, run.info.run_name, run.info.status, whole_tags(run.data.tags), run.data.params,
                {name: _number(value) for name, value in run.data.metrics.items()},
            )
            for run in self._pages(
                self._client.search_runs, experiment_ids=[experiment], filter_string=query, order_by=order
            )
        ]  # fmt: skip

    def artifacts(self, run_id: str) -> str:
        return self._client.get_run(run_id).info.artifact_uri

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        points = self._client.get_metric_history(run_id, metric)
        return [(p.step, _number(p.value)) for p in sorted(points, key=lambda p: (p.step, p.timestamp))]

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
