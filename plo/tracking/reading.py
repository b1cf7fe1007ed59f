"""What was recorded, read back: comparisons, and their cells with what evaluations found of them."""

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from plo.metric import Metric
from plo.tracking.client import TrackingError
from plo.tracking.recording import DESCRIBED
from plo.tracking.runs import Run
from plo.tracking.store import MissingFiles, Store, allowed_name

ANY = "any"  # the tag plo.model of models that plo did not train, and so of comparisons of them
DOWNLOADS = 8  # tables fetched at a time
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

    def cells(self) -> list["RecordedCell"]:
        """Every cell that was ever started: its last finished attempt, or else its last one; with what evaluations found."""
        best = {}
        for run in reversed(self._tracker._children(self.run_id)):  # oldest first
            key = run.tags["plo.cell"]
            if key not in best or run.status == "FINISHED" or best[key].status != "FINISHED":
                best[key] = run
        found = self._findings()
        return [self._cell(run, tuple(found.get(key, {}).values())) for key, run in best.items()]

    def _findings(self) -> dict[str, dict[tuple[str, str], "Finding"]]:
        """{cell key: {(evaluation, settings): the last finished run of it}}, newest first."""
        found: dict[str, dict[tuple[str, str], Finding]] = {}
        for run in self._tracker._children(self.run_id, "evaluation"):
            if run.status == "FINISHED":
                tags, prefix = run.tags, allowed_name(f"{run.tags['plo.evaluation']}.")
                metrics = {name.removeprefix(prefix): _unclipped(v) for name, v in run.metrics.items()}
                own = (run.run_id, tags["plo.evaluation"], tags["plo.settings"], run.params, metrics)
                found.setdefault(tags["plo.of"], {}).setdefault(own[1:3], Finding(*own, self._tracker))
        return found

    def missing(self, cells: Sequence["RecordedCell"]) -> list[str]:
        """Names of the planned cells that are not among these, so were never started."""
        started = {cell.key for cell in cells}
        return [name for key, name in self.planned().items() if key not in started]

    def _cell(self, run: Run, findings: tuple["Finding", ...]) -> "RecordedCell":
        metrics = {name: _unclipped(value) for name, value in run.metrics.items()}
        own = (run.run_id, run.name, self.name, self.key, run.status)
        return RecordedCell(*own, dict(run.tags), run.params, metrics, self._tracker, findings)


@dataclass(frozen=True)
class Finding:
    """What an evaluation of level "model" found of a cell; recorded by `ActiveRun.finding`.

    Attributes:
        settings: a digest of all that two findings of an evaluation must share to be compared: its code, options, judge.
        params: its options that differ from their defaults, "judge" and "against" where it has them.
        metrics: by the names that the evaluation gave.
    """

    run_id: str
    evaluation: str
    settings: str
    params: dict[str, str]
    metrics: dict[str, float]
    _tracker: Store

    @property
    def items(self) -> pd.DataFrame:
        """One row an item, with `prompt_id`."""
        return self._tracker.table(self.run_id, f"{self.evaluation}.json")

    @property
    def about(self) -> dict[str, Any]:
        """notes, lengths: see `plo.evals.Findings`; judges: {judge, version, prompt, given} of each that was asked, a prompt
        each; but_judge: digest of the settings without the judge.

        Raises:
            TrackingError: an earlier version of plo recorded it, without these.
        """
        try:
            return self._tracker._read(self.run_id, "about.json")
        except MissingFiles:
            raise
        except TrackingError as error:
            raise TrackingError(
                f"{self.evaluation} (run {self.run_id}) was recorded without what tables need: run plo eval again."
            ) from error


@dataclass(frozen=True)
class RecordedCell:
    """A recorded cell: `metrics` are the latest values, `status` is FINISHED for one that counts.

    `findings` are those of evaluations of its model, newest first, one for each evaluation and settings.
    """

    run_id: str
    name: str
    comparison: str
    comparison_key: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    _tracker: Store
    findings: tuple[Finding, ...] = ()

    @property
    def key(self) -> str:
        return self.tags["plo.cell"]

    def table(self, name: str) -> pd.DataFrame:
        """A table recorded by `ActiveRun.table`; see `Tracker.table`."""
        return self._tracker.table(self.run_id, name)

    @property
    def described(self) -> dict[str, Metric]:
        """What the metrics mean, as `ActiveRun.describe` recorded it; empty of a run that an earlier version recorded."""
        found = [json.loads(text) for tag, text in self.tags.items() if tag.startswith(DESCRIBED)]
        return {one["name"]: Metric.from_dict(one) for one in found}

    def has_table(self, name: str) -> bool:
        """Whether `ActiveRun.table` recorded a table of that name, be the file still there or not."""
        recorded = json.loads(self.tags.get("mlflow.loggedArtifacts", "[]"))
        return any(table["path"] == name for table in recorded)

    @property
    def folder(self) -> Path | None:
        """Where the trained model is now, recorded by `ActiveRun.folder`; None of a cell that trained none."""
        recorded = self.tags.get("plo.folder")
        return self._tracker.current_path(recorded) if recorded else None

    def history(self, metric: str) -> dict[int, float]:
        """{step: value} of a metric along training, in order of steps."""
        return {step: _unclipped(value) for step, value in self._tracker._reader.history(self.run_id, metric)}


def tables(cells: Sequence[RecordedCell], name: str) -> dict[str, pd.DataFrame]:
    """{run id: its table of that name}, several fetched at a time, which matters where they come from a server.

    Raises:
        TrackingError: a cell has no such table, or its files are not there.
    """
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        found = pool.map(lambda cell: cell.table(name), cells)
        return {cell.run_id: frame for cell, frame in zip(cells, found, strict=True)}


def _unclipped(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= _INFINITY else value
