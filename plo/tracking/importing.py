"""Import of an archive into a store, run by run; an import that was killed goes on when it is started again.

MLflow gives every run an id of its own. In a SQLite file, whose tables plo knows, a run gets back the id that it was exported
with, so that a table of the imported store names the same runs. On a server ids are new, and the tag `plo.imported` keeps the
former one.
"""

import json
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from plo.caches import named_lock
from plo.tracking.archive import IMPORTED, Archive, opened
from plo.tracking.borrowed import CONTEXT, PARENT
from plo.tracking.client import TrackingError, import_mlflow
from plo.tracking.limits import METRICS, batches
from plo.tracking.runs import LOCKED_SECONDS
from plo.tracking.tracker import Tracker

OWN_TABLES = ("tags", "params", "metrics", "latest_metrics")  # whose column run_uuid names a run


class Imported(NamedTuple):
    """What an import did: the comparison's name and key, and the numbers of runs that are new and that were there."""

    name: str
    key: str
    new: int
    known: int


def import_archive(tracker: Tracker, path: Path) -> Imported:
    """Import a comparison into a store. Imported again, what is there stays as it is.

    Raises:
        TrackingError: the archive is damaged, or the store has the comparison from another source.
    """
    with opened(path) as archive, named_lock("import", tracker.uri):
        index = archive.index
        others = [one for one in tracker.comparisons() if one.key == index["key"]]
        if any(index["comparison"] not in (one.run_id, one.tags.get(IMPORTED)) for one in others):
            raise TrackingError(
                f"{tracker.uri} has recorded {index['name']} ({index['key'][:12]}) itself, and each of its cells would count "
                f"twice: import the archive into another store, plo import {path.name} --store FILE.db"
            )
        shells = {run_id: _Shell.of(tracker, archive, run_id) for run_id in index["runs"]}
        todo = [shell for shell in shells.values() if not shell.done]
        for shell in todo:  # the comparison is the last one: until it is there, tables do not show the others
            shell.fill({former: one.run_id for former, one in shells.items()})
        return Imported(index["name"], index["key"], len(todo), len(shells) - len(todo))


class _Shell:
    """A run of an archive in the store, at first without what it recorded, which searches therefore do not find."""

    def __init__(self, tracker: Tracker, archive: Archive, former: str, run_id: str, *, done: bool):
        self.tracker, self.archive, self.former = tracker, archive, former
        self.run_id, self.done = run_id, done

    @classmethod
    def of(cls, tracker: Tracker, archive: Archive, former: str) -> "_Shell":
        """Return the run with this former id, which is made if it is missing."""
        record = archive.run(former)
        for run in tracker._search(imported=former):
            # Another archive of the comparison may have been made while the run was under way.
            done = "plo.kind" in run.tags and run.status == record["status"]
            return cls(tracker, archive, former, run.run_id, done=done)
        if (stage := tracker._reader.stage(former)) is not None:  # it was recorded here
            if stage == "deleted":
                raise TrackingError(
                    f"Run {former} of the archive was deleted in {tracker.uri}: bring it back with `mlflow runs restore --run-id "
                    f"{former}`, or import into another store (--store FILE.db)."
                )
            return cls(tracker, archive, former, former, done=True)
        about = {"run_name": record["name"], "start_time": record["start_time"], "tags": {IMPORTED: former}}
        made = tracker._client.create_run(tracker._id, **about)
        return cls(tracker, archive, former, made.info.run_id, done=False)

    def fill(self, ids: dict[str, str]) -> None:
        """Record what the run had; every step may be repeated. `ids` has the ids of all runs by their former ones."""
        client, record, entities = self.tracker._client, self.archive.run(self.former), import_mlflow().entities
        known = client.get_run(self.run_id).data.params
        params = [one for one in record["params"].items() if one[0] not in known]
        for batch in batches(params, lambda one: len(json.dumps(one))):
            client.log_batch(self.run_id, params=[entities.Param(*one) for one in batch])
        points = [(name, float(value), when, step) for name, value, step, when in record["metrics"]]
        for batch in batches(points, lambda one: 100, METRICS):
            client.log_batch(self.run_id, metrics=[entities.Metric(*one) for one in batch])
        if record["inputs"]:
            client.log_inputs(self.run_id, datasets=[_input(one) for one in record["inputs"]])
        with tempfile.TemporaryDirectory() as aside:
            for place, content in self.archive.files(self.former):
                file = Path(aside, place.name)
                file.write_bytes(content)
                client.log_artifact(self.run_id, str(file), str(place.parent) if place.parent.parts else None)
                file.unlink()
        if self.tracker.file is not None and self.run_id != self.former:
            _give_back_id(self.tracker.file, self.run_id, self.former)
            ids[self.run_id] = self.run_id = self.former
        if record["status"] != "RUNNING":
            client.set_terminated(self.run_id, record["status"], record["end_time"])
        tags = dict(record["tags"])
        if self.tracker.file is None and tags.get(PARENT) in ids:
            tags[PARENT] = ids[tags[PARENT]]
        kind = [("plo.kind", tags.pop("plo.kind"))] if "plo.kind" in tags else []
        for batch in batches([*tags.items(), *kind], lambda one: len(json.dumps(one))):  # the last one makes it visible
            client.log_batch(self.run_id, tags=[entities.RunTag(*one) for one in batch])


def _input(one: dict[str, Any]) -> Any:
    entities = import_mlflow().entities
    data = entities.Dataset(one["name"], one["digest"], one["source_type"], one["source"])
    return entities.DatasetInput(data, [entities.InputTag(CONTEXT, one["context"])] if one["context"] else [])


def _give_back_id(file: Path, run_id: str, former: str) -> None:
    """Give a run of a SQLite store the id that it was exported with, in one transaction."""
    with closing(sqlite3.connect(file, timeout=LOCKED_SECONDS)) as connection, connection:
        connection.execute("UPDATE runs SET run_uuid = ? WHERE run_uuid = ?", [former, run_id])
        for table in OWN_TABLES:
            connection.execute(f"UPDATE {table} SET run_uuid = ? WHERE run_uuid = ?", [former, run_id])
        connection.execute("UPDATE inputs SET destination_id = ? WHERE destination_id = ?", [former, run_id])
