"""Where a process records what it runs, and where it finds what was recorded."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from plo.tracking.borrowed import PARENT
from plo.tracking.client import TrackingError
from plo.tracking.reading import Comparison, RecordedCell
from plo.tracking.recording import ActiveRun
from plo.tracking.store import Store


class Tracker(Store):
    """Comparisons, cells, stages and evaluations in an MLflow experiment; its arguments and errors are those of `Store`."""

    # --- recording ---

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
            found = self._search(kind="comparison", key=key)
            if found:
                run_id = found[0].run_id
            else:
                own = {"plo.kind": "comparison", "plo.key": key, "plo.comparison": name}
                run_id = self._create_run(name, own | dict(tags or {}))
            # Written again each time: the last process may have been killed between making the run and this.
            self._client.log_dict(run_id, json.loads(json.dumps(config, default=str)), "config.json")
            if cells is not None:
                self._client.log_dict(run_id, self._planned(run_id) | dict(cells), "cells.json")
            self._log_params(run_id, config)
            self._client.update_run(run_id, status="RUNNING")
        return run_id

    def finished(self, parent_id: str) -> dict[str, str]:
        """{cell key: run id} of the comparison's finished cells."""
        return {
            run.tags["plo.cell"]: run.run_id for run in reversed(self._children(parent_id)) if run.status == "FINISHED"
        }

    def start_cell(
        self,
        parent_id: str,
        cell_key: str,
        name: str,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> ActiveRun:
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
    ) -> ActiveRun | None:
        """Start recording a stage; None if any comparison of the store has it finished. Else as `start_cell`."""
        known = self._search(kind="stage", cell=key)
        if any(run.status == "FINISHED" for run in known):
            return None
        return self._start("stage", known, parent_id, key, name, tags, params)

    def start_evaluation(
        self, parent_id: str, key: str, name: str, tags: Mapping[str, Any], params: Mapping[str, Any] | None = None
    ) -> ActiveRun | None:
        """Start recording what an evaluation of level "model" finds of a cell; None if the comparison has it finished.

        Args:
            tags: `plo.of`: the cell's key; `plo.evaluation`: the evaluation's name; `plo.settings`: a digest of its settings.
        """
        known = self._children(parent_id, "evaluation")
        if any(run.tags["plo.cell"] == key and run.status == "FINISHED" for run in known):
            return None
        return self._start("evaluation", known, parent_id, key, name, tags, params)

    def _start(self, kind: str, known: list, parent_id: str, key: str, name: str, tags, params) -> ActiveRun:
        with self._lock:
            for run in known:
                if run.tags.get("plo.cell") == key and run.status != "FINISHED":
                    self._client.set_tag(run.run_id, "plo.superseded", "true")
                    if run.status in ("RUNNING", "SCHEDULED"):
                        self._client.set_terminated(run.run_id, "KILLED")
            own = {"plo.kind": kind, "plo.cell": key, PARENT: parent_id}
            run_id = self._create_run(name, own | dict(tags or {}))
        self._log_params(run_id, params or {})
        return ActiveRun(self, run_id)

    def end_comparison(self, parent_id: str, ok: bool, killed: bool = False) -> None:
        """Close the comparison: FINISHED, KILLED by the user, or FAILED where a cell failed or is missing."""
        self._client.set_terminated(parent_id, "KILLED" if killed else "FINISHED" if ok else "FAILED")

    def judge_check(self, judge: str, version: str, card: Mapping[str, Any]) -> None:
        """Record the card of a judge, of this version (weights, prompt, ...), so that tables show it beside its verdicts."""
        tags = {"plo.kind": "judge", "plo.judge": judge, "plo.judge_version": version}
        run_id = self._create_run(f"check of {judge}", tags)
        self._client.log_dict(run_id, dict(card), "card.json")
        self._client.set_terminated(run_id, "FINISHED")

    # --- reading ---

    def judge_checks(self) -> list[dict[str, Any]]:
        """The cards of judges, oldest first, each with its `judge` and `version`."""
        return [
            {"judge": run.tags["plo.judge"], "version": run.tags["plo.judge_version"]}
            | self._read(run.run_id, "card.json")
            for run in reversed(self._search(kind="judge"))
            if run.status == "FINISHED"
        ]

    def comparisons(self, select: str | None = None) -> list[Comparison]:
        """The comparisons, oldest first; with `select`, those of that name, or whose key begins with it.

        Raises:
            TrackingError: `select` fits none; the message lists those there are.
        """
        found = []
        for run in reversed(self._search(kind="comparison")):
            tags = run.tags
            own = (run.run_id, tags["plo.comparison"], tags["plo.key"], run.status)
            found.append(Comparison(*own, tags, self))
        chosen = [c for c in found if select is None or c.name == select or c.key.startswith(select)]
        if select is not None and not chosen:
            known = ", ".join(f"{c.name} ({c.key[:12]})" for c in found) or "none"
            raise TrackingError(f"No comparison in {self.uri} has name or key {select!r}. Known: {known}.")
        return chosen

    def cells(self, select: str | None = None) -> list[RecordedCell]:
        """The cells of the selected comparisons: of each, the finished attempt, or else the last one."""
        return [cell for comparison in self.comparisons(select) for cell in comparison.cells()]

    def stages(self, parent_id: str | None = None) -> list[dict[str, Any]]:
        """List stages of a comparison, or of all, oldest first: run_id, name, key, status, metrics (seconds, ...), tags, params."""
        of_parent = {"parent": parent_id} if parent_id else {}
        return [
            {
                "run_id": run.run_id,
                "name": run.name,
                "key": run.tags["plo.cell"],
                "status": run.status,
                "metrics": run.metrics,
                "tags": run.tags,
                "params": run.params,
            }
            for run in reversed(self._search(kind="stage", **of_parent))
        ]


@contextmanager
def closing(tracker: Any, parent_id: str) -> Iterator[dict[str, str]]:
    """Close the comparison however the block ends. The block puts what fails into the dictionary: {name: error}."""
    failed: dict[str, str] = {}
    try:
        yield failed
    except BaseException as error:
        tracker.end_comparison(parent_id, ok=False, killed=isinstance(error, KeyboardInterrupt))
        raise
    tracker.end_comparison(parent_id, ok=not failed)
