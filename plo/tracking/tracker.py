"""Tracker: a process records comparisons, cells, stages and evaluations with it, and reads back recorded ones."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from plo.errors import one_line
from plo.tracking.artifacts import STAGE, Artifact
from plo.tracking.borrowed import PARENT
from plo.tracking.claims import Claims, Held
from plo.tracking.client import TrackingError
from plo.tracking.reading import Comparison, RecordedCell
from plo.tracking.recording import ActiveRun
from plo.tracking.runs import Run
from plo.tracking.sending import send_left
from plo.tracking.store import Store

UNITS = "units.json"
log = logging.getLogger(__name__)
Facts = Mapping[str, Any]  # tags or parameters by name


class Tracker(Store):
    """Records and reads comparisons, cells, stages and evaluations in an MLflow experiment; see `Store` for arguments.

    What processes recorded that ended before they could send it is sent first.
    """

    def __init__(
        self, store: str | Path | None = None, experiment: str = "plo", *, create: bool = True, patient: bool = False
    ):
        super().__init__(store, experiment, create=create, patient=patient)
        if create:
            send_left(self.claims)

    @cached_property
    def claims(self) -> Claims:
        """Claims of this process on what it does, which keep other processes from doing it too."""
        return Claims(self, send_left)

    # --- recording ---

    def comparison(
        self,
        name: str,
        key: str,
        config: Mapping[str, Any],
        tags: Facts | None = None,
        cells: Mapping[str, str] | None = None,
        units: Facts | None = None,
    ) -> str:
        """Return the run id of the comparison with this key, which is created if it is not recorded yet.

        Args:
            key: digest of everything that defines the comparison.
            config: nested settings, recorded as the artifact config.json and as flat parameters "data.name".
            cells: planned cells, {cell key: name}, so that a table can list missing ones. They are added to those planned
                earlier: a comparison may grow by losses and seeds.
            units: planned units of work, {key: JSON values}, likewise.
        """
        own = {"plo.kind": "comparison", "plo.key": key, "plo.comparison": name}
        run_id = self.claims.first({"kind": "comparison", "key": key}, name, own | dict(tags or {}))
        with self._lock:
            # Written each time: the last process may have been killed after it created the run.
            self._client.log_dict(run_id, json.loads(json.dumps(config, default=str)), "config.json")
            if cells is not None:
                self._client.log_dict(run_id, self._planned(run_id) | dict(cells), "cells.json")
            if units:
                self._client.log_dict(run_id, self.planned_units(run_id) | dict(units), UNITS)
            self._log_params(run_id, config)
            self._client.update_run(run_id, status="RUNNING")
        return run_id

    def keep(self, run_id: str, name: str, text: str, *, anew: bool = False) -> None:
        """Record a text as a file of a comparison, unless it has a file of that name; with `anew`, in place of that."""
        with self._lock:
            if anew or not self._has_file(run_id, name):
                self._client.log_text(run_id, text, name)

    def planned_units(self, parent_id: str) -> dict[str, Any]:
        """Return the planned units of work of a comparison, {key: JSON values}."""
        return self._planned(parent_id, UNITS)

    def is_free(self, parent_id: str, kind: str, key: str) -> bool:
        """Return whether no living process is doing a unit, after closing the attempts of lost ones."""
        runs, living = self.claims.look({"parent": parent_id, "kind": kind, "cell": key})
        if living:
            return False
        for run in runs:
            if run.status == "RUNNING":
                self.claims.close(run)
        return True

    def finished_run(self, parent_id: str, kind: str, variant: str, seed: int) -> str | None:
        """Return the run id of a finished cell, or trial, of a variant with a seed; None if there is none."""
        found = self._search(parent=parent_id, kind=kind, variant=variant, seed=str(seed))
        return next((run.run_id for run in found if run.status == "FINISHED"), None)

    def finished(self, parent_id: str, kind: str = "cell") -> dict[str, str]:
        """Return {cell key: run id} of the finished cells, or trials, of a comparison."""
        runs = reversed(self._children(parent_id, kind))
        return {run.tags["plo.cell"]: run.run_id for run in runs if run.status == "FINISHED"}

    def start_cell(
        self, parent_id: str, key: str, name: str, tags: Facts | None = None, params: Facts | None = None
    ) -> ActiveRun:
        """Start recording an attempt at a cell, which this process then has until the attempt is closed.

        Earlier attempts that did not finish get the tag plo.superseded. Those with the status RUNNING, whose process is
        lost, get the status KILLED.

        Raises:
            Held: the cell is finished, or another process is doing it.
        """
        return self._start("cell", parent_id, key, name, tags, params)

    def start_trial(
        self, parent_id: str, key: str, name: str, tags: Facts | None = None, params: Facts | None = None
    ) -> ActiveRun:
        """Start recording a trial of a tuning, as `start_cell` does. Tables do not show trials among the cells."""
        return self._start("trial", parent_id, key, name, tags, params)

    def start_stage(
        self, parent_id: str, key: str, name: str, tags: Facts | None = None, params: Facts | None = None
    ) -> ActiveRun | Artifact:
        """Start recording a stage, as `start_cell` does, once no other process is making it.

        Returns:
            The attempt; if the stage is finished in any comparison of the store, what it recorded.
        """
        started = self._start_unless_finished("stage", parent_id, key, name, tags, params)
        return started if isinstance(started, ActiveRun) else Artifact.of(self, started.run_id, started.tags, STAGE)

    def start_evaluation(
        self, parent_id: str, key: str, name: str, tags: Facts, params: Facts | None = None
    ) -> ActiveRun | None:
        """Start recording an evaluation of level "model" of a cell, as `start_stage` does; None if it is finished.

        Args:
            tags: `plo.of`, key of the cell; `plo.evaluation`, name of the evaluation; `plo.settings`, digest of its settings.
        """
        started = self._start_unless_finished("evaluation", parent_id, key, name, tags, params)
        return started if isinstance(started, ActiveRun) else None

    def _start(self, kind: str, parent_id: str, key: str, name: str, tags, params) -> ActiveRun:
        own = {"plo.kind": kind, "plo.cell": key, PARENT: parent_id}
        anywhere = {} if kind == "stage" else {"parent": parent_id}  # comparisons of a store share stages
        run_id = self.claims.take({"kind": kind, "cell": key, **anywhere}, name, own | dict(tags or {}))
        self._log_params(run_id, params or {})
        return ActiveRun(self.claims, run_id)

    def _start_unless_finished(self, kind: str, *about) -> ActiveRun | Run:
        """Return an attempt, or the finished run."""
        waits = self.claims.waiting()
        while True:
            try:
                return self._start(kind, *about)
            except Held as held:
                if held.finished:
                    return held.run
                waits(held)

    def end_comparison(self, parent_id: str, ok: bool, killed: bool = False) -> None:
        """Close the comparison as FINISHED, as KILLED by the user, or as FAILED if a cell failed or is missing.

        Runs that lost processes left without a status are closed too.
        """
        runs, living = self.claims.look({"parent": parent_id})
        for run in runs:
            if run.status == "RUNNING" and run not in living:
                self.claims.close(run)
        self._client.set_terminated(parent_id, "KILLED" if killed else "FINISHED" if ok else "FAILED")

    def postpone_comparison(self, parent_id: str) -> None:
        """Mark a comparison of which nothing is trained yet as SCHEDULED."""
        self._client.update_run(parent_id, status="SCHEDULED")

    def judge_check(self, judge: str, version: str, card: Mapping[str, Any]) -> None:
        """Record the card of a version of a judge (weights, prompt, ...), so that tables show it alongside its verdicts."""
        tags = {"plo.kind": "judge", "plo.judge": judge, "plo.judge_version": version}
        run_id = self._create_run(f"check of {judge}", tags)
        self._client.log_dict(run_id, dict(card), "card.json")
        self._client.set_terminated(run_id, "FINISHED")

    # --- reading ---

    def judge_checks(self) -> list[dict[str, Any]]:
        """List the cards of judges, oldest first, each with its `judge` and `version`."""
        return [
            {"judge": run.tags["plo.judge"], "version": run.tags["plo.judge_version"]}
            | self._read(run.run_id, "card.json")
            for run in reversed(self._search(kind="judge"))
            if run.status == "FINISHED"
        ]

    def comparisons(self, select: str | None = None) -> list[Comparison]:
        """List the comparisons, oldest first. `select` restricts the list to a name, or to keys that begin with it.

        Raises:
            TrackingError: no comparison fits `select`; the message lists the recorded ones.
        """
        found = [
            Comparison(run.run_id, run.tags["plo.comparison"], run.tags["plo.key"], run.status, run.tags, self)
            for run in reversed(self._search(kind="comparison"))
        ]
        chosen = [c for c in found if select is None or c.name == select or c.key.startswith(select)]
        if select is not None and not chosen:
            known = ", ".join(f"{c.name} ({c.key[:12]})" for c in found) or "none"
            raise TrackingError(f"No comparison in {self.uri} has name or key {select!r}. Known: {known}.")
        return chosen

    def trials(self, parent_id: str) -> dict[str, Run]:
        """Return {key: run} of the finished trials of a comparison."""
        runs = reversed(self._children(parent_id, "trial"))
        return {run.tags["plo.cell"]: run for run in runs if run.status == "FINISHED"}

    def finished_stage(self, key: str) -> Artifact | None:
        """Return what a finished stage recorded; None if no comparison of the store has it finished."""
        finished = (run for run in self._search(kind="stage", cell=key) if run.status == "FINISHED")
        return next((Artifact.of(self, run.run_id, run.tags, STAGE) for run in finished), None)

    def cells(self, select: str | None = None) -> list[RecordedCell]:
        """List the cells of the selected comparisons; see `Comparison.cells`."""
        return [cell for comparison in self.comparisons(select) for cell in comparison.cells()]

    def stages(self, parent_id: str | None = None) -> list[dict[str, Any]]:
        """List stages of a comparison, or of all, oldest first: run_id, name, key, status, metrics (seconds, ...), tags, params."""
        of_parent = {"parent": parent_id} if parent_id else {}
        return [
            asdict(run) | {"key": run.tags["plo.cell"]} for run in reversed(self._search(kind="stage", **of_parent))
        ]


@contextmanager
def closing(tracker: Any, parent_id: str) -> Iterator[dict[str, str]]:
    """Close the comparison when the block ends, in whatever way. The block collects {name: error} of what failed."""
    failed: dict[str, str] = {}
    try:
        yield failed
    except BaseException as error:
        try:
            tracker.end_comparison(parent_id, ok=False, killed=isinstance(error, KeyboardInterrupt))
        except Exception as untold:  # MLflow's own too; `error` is what the user must read
            log.warning("The end of the comparison is not recorded: %s", one_line(untold))
        raise
    tracker.end_comparison(parent_id, ok=not failed)
