"""Recorded comparisons, cells and findings of evaluations, read back from a store."""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from plo import caches
from plo import store as stored
from plo.metric import Metric
from plo.tracking.artifacts import MODEL, Artifact
from plo.tracking.client import TrackingError
from plo.tracking.limits import allowed_name
from plo.tracking.recording import DESCRIBED
from plo.tracking.runs import Run
from plo.tracking.store import MissingFiles, Store

TRAINED = caches.CACHES["trained"]
ANY = "any"  # value of the tag plo.model of models that plo did not train, and of comparisons of such models
EXPERIMENT = "experiment.yaml"  # file of a comparison: the experiment file as the user wrote it
MADE_WITH = "plo.made_with"  # tag of a run: name of the record of packages, hardware, model and data
DOWNLOADS = 8  # tables fetched at once


def made_with_file(digest: str) -> str:
    """Return the name of the file of a comparison that holds the record which the tag `MADE_WITH` names."""
    return f"made-with-{digest}.json"


def plugin_file(sha256: str) -> str:
    """Return the name of the file of a comparison that holds a copy of a plug-in."""
    return f"plugin-{sha256[:16]}.py"


class ModelLost(TrackingError):
    """The trained model of a cell is neither on this machine nor in the store, or is damaged in both."""


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
        """Return {cell key: name} of the planned cells; empty if they were not recorded."""
        return self._tracker._planned(self.run_id)

    def config(self) -> dict[str, Any]:
        """Return the configuration that the comparison was started with."""
        return self._tracker._read(self.run_id, "config.json")

    def made_with(self, digest: str | None) -> dict[str, Any] | None:
        """Return the record of packages, hardware, model and data that a run's tag `MADE_WITH` names; None if there is none."""
        recorded = digest and self._tracker._has_file(self.run_id, made_with_file(digest))
        return self._tracker._read(self.run_id, made_with_file(digest)) if digest and recorded else None

    def experiment_text(self) -> str | None:
        """Return the text of the experiment file; None if an earlier version of plo recorded the comparison."""
        tracker = self._tracker
        return tracker._text(self.run_id, EXPERIMENT) if tracker._has_file(self.run_id, EXPERIMENT) else None

    def stages(self, keys: Iterable[str]) -> list["RecordedStage"]:
        """List the finished stages with these keys, in their order; comparisons of a store share stages."""
        found = {run.tags["plo.cell"]: run for run in self._tracker._search(kind="stage") if run.status == "FINISHED"}
        return [
            RecordedStage(found[key].run_id, found[key].name, key, found[key].metrics, self._tracker)
            for key in dict.fromkeys(keys)
            if key in found
        ]

    def cells(self) -> list["RecordedCell"]:
        """List every cell that was started, by its last finished attempt, or else its last attempt, with its findings."""
        best: dict[str, Run] = {}
        for run in reversed(self._tracker._children(self.run_id)):  # oldest first
            key = run.tags["plo.cell"]
            if key not in best or run.status == "FINISHED" or best[key].status != "FINISHED":
                best[key] = run
        found = self._findings()
        return [self._recorded(run, found.get(key, {}).values()) for key, run in best.items()]

    def cell(self, key: str) -> "RecordedCell | None":
        """Return the finished cell with this key, without its findings; None if there is none."""
        runs = self._tracker._search(parent=self.run_id, kind="cell", cell=key)
        return next((self._recorded(run) for run in runs if run.status == "FINISHED"), None)

    def _recorded(self, run: Run, findings: Iterable["Finding"] = ()) -> "RecordedCell":
        own = (run.run_id, run.name, self.name, self.key, run.status, run.tags, run.params, run.metrics)
        return RecordedCell(*own, self._tracker, tuple(findings))

    def _findings(self) -> dict[str, dict[tuple[str, str], "Finding"]]:
        """Return {cell key: {(evaluation, settings): last finished finding}}, newest first."""
        found: dict[str, dict[tuple[str, str], Finding]] = {}
        for run in self._tracker._children(self.run_id, "evaluation"):
            if run.status == "FINISHED":
                tags, prefix = run.tags, allowed_name(f"{run.tags['plo.evaluation']}.")
                metrics = {name.removeprefix(prefix): value for name, value in run.metrics.items()}
                own = (run.run_id, tags["plo.evaluation"], tags["plo.settings"], run.params, metrics)
                found.setdefault(tags["plo.of"], {}).setdefault(own[1:3], Finding(*own, self._tracker))
        return found

    def missing(self, cells: Sequence["RecordedCell"]) -> list[str]:
        """List names of planned cells that are not among `cells`, because they were never started."""
        started = {cell.key for cell in cells}
        return [name for key, name in self.planned().items() if key not in started]


@dataclass(frozen=True)
class Finding:
    """Recorded result of an evaluation of level "model" on a cell, written by `ActiveRun.finding`.

    Attributes:
        settings: digest of what two findings must share to be compared: code, options and judge of the evaluation.
        params: options that differ from their defaults, and the judge and the model compared with, where there are any.
        metrics: values by the names that the evaluation gave them.
    """

    run_id: str
    evaluation: str
    settings: str
    params: dict[str, str]
    metrics: dict[str, float]
    _tracker: Store

    @property
    def items(self) -> pd.DataFrame:
        """Table with one row per item and a column `prompt_id`."""
        return self.table(f"{self.evaluation}.json")

    def table(self, name: str) -> pd.DataFrame:
        """Return a table that the evaluation recorded; see `Tracker.table`."""
        return self._tracker.table(self.run_id, name)

    def history(self, metric: str) -> dict[int, float]:
        """Return {step of the training: value} of a metric with values along training; else its one value."""
        return dict(self._tracker._reader.history(self.run_id, allowed_name(f"{self.evaluation}.{metric}")))

    @property
    def about(self) -> dict[str, Any]:
        """Facts about the finding: `notes` and `lengths` (see `plo.evals.Findings`); `judges`, a list with judge, version,
        prompt and given specification of each; `but_judge`, the digest of the settings without the judge.

        Raises:
            TrackingError: an earlier version of plo recorded the finding without these facts.
        """
        try:
            return self._tracker._read(self.run_id, "about.json")
        except MissingFiles:
            raise
        except TrackingError as error:
            raise TrackingError(
                f"{self.evaluation} (run {self.run_id}) was recorded by an earlier version of plo, without facts that tables need: run plo eval again."
            ) from error


@dataclass(frozen=True)
class RecordedCell:
    """A recorded cell. Only cells with the status FINISHED count.

    Attributes:
        metrics: latest value of each metric.
        findings: findings of evaluations of the trained model, newest first, one per evaluation and settings.
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
        """Hash of everything that defines the cell's numbers."""
        return self.tags["plo.cell"]

    def table(self, name: str) -> pd.DataFrame:
        """Return a table that `ActiveRun.table` recorded; see `Tracker.table`."""
        return self._tracker.table(self.run_id, name)

    @property
    def described(self) -> dict[str, Metric]:
        """Descriptions of the metrics that `ActiveRun.describe` recorded; empty for runs of earlier versions of plo."""
        found = [json.loads(text) for tag, text in self.tags.items() if tag.startswith(DESCRIBED)]
        return {one["name"]: Metric.from_dict(one) for one in found}

    def has_table(self, name: str) -> bool:
        """Return whether `ActiveRun.table` recorded a table of that name, even if its file is missing now."""
        recorded = json.loads(self.tags.get("mlflow.loggedArtifacts", "[]"))
        return any(table["path"] == name for table in recorded)

    @property
    def folder(self) -> Path | None:
        """Folder that the model was trained in, which may be on another machine; None for a cell that trained no model."""
        recorded = self.tags.get("plo.folder")
        return self._tracker.current_path(recorded) if recorded else None

    def model(self) -> Path:
        """Return a folder with the trained model: the one that it was trained in, or else a copy from the store.

        Raises:
            ModelLost: neither has the model as it was recorded. Nothing is removed: a damaged folder may be the only one.
        """
        recorded = Artifact.of(self._tracker, self.run_id, self.tags, MODEL)
        folder = self.folder or Path("runs")
        if (wrong := recorded.damage(folder)) is None:
            return folder
        copy = TRAINED.path(self.run_id)
        with caches.lock(copy):
            if stored.intact(copy):
                return copy
            lost = recorded.fetch(copy)
        if lost is None:
            return copy
        raise ModelLost(
            f"The trained policy of {self.name}, {folder}, {wrong}, and in the store {self._tracker.uri} it {lost}: bring back "
            f"a copy of that folder, or train the cell anew in a comparison of another name (plo compare ... name=NAME)."
        )

    def history(self, metric: str) -> dict[int, float]:
        """Return {step: value} of a metric during training, in the order of steps."""
        return dict(self._tracker._reader.history(self.run_id, metric))

    def histories(self) -> dict[str, dict[int, float]]:
        """Return {metric: its history} of every recorded metric."""
        return self._tracker._reader.histories(self.run_id, self.metrics)


@dataclass(frozen=True)
class RecordedStage:
    """A finished stage, such as the SFT that cells start from."""

    run_id: str
    name: str
    key: str
    metrics: dict[str, float]
    _tracker: Store

    def histories(self) -> dict[str, dict[int, float]]:
        """Return {metric: its history} of every recorded metric."""
        return self._tracker._reader.histories(self.run_id, self.metrics)


def tables(cells: Sequence[RecordedCell], name: str) -> dict[str, pd.DataFrame]:
    """Return {run id: table} of the table `name` of each cell. Several are fetched at once, which is faster from a server.

    Raises:
        TrackingError: a cell has no such table, or its files are missing.
    """
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        found = pool.map(lambda cell: cell.table(name), cells)
        return {cell.run_id: frame for cell, frame in zip(cells, found, strict=True)}
