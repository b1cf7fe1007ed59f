"""What was recorded, read back: comparisons, and their cells with what evaluations found of them."""

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from plo.tracking.store import Store

_INFINITY = 1.7976931348623157e308  # what MLflow's SQL store writes for an infinite metric


@dataclass(frozen=True)
class Comparison:
    """A recorded comparison."""

    run_id: str
    name: str
    key: str
    status: str
    tags: dict[str, str]
    _tracker: Store

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
            tags |= {
                name: v
                for name, v in found.data.tags.items()
                if name.startswith(("plo.notes.", "plo.lengths.", "plo.judge"))
            }
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
    _tracker: Store
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


def _unclipped(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= _INFINITY else value
