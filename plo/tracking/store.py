"""One MLflow experiment in a store: opening it, searching its runs, reading and writing their files."""

import json
import logging
import os
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pandas as pd
from filelock import FileLock

from plo.caches import named_lock
from plo.faults import disk_fault
from plo.tracking import place
from plo.tracking.borrowed import CONTEXT, PARENT
from plo.tracking.client import TrackingError, import_mlflow, make_sqlite_store, open_client
from plo.tracking.limits import DATASET, NAME, batches, flat, shortened, tag_parts
from plo.tracking.patience import Patient, patiently
from plo.tracking.runs import ClientReader, Reader, RecordedExperiment, Run, SqliteReader

STORE = "plo.db"
CALL = "plo.call"  # tag that names the call that made a run
log = logging.getLogger(__name__)


def store_uri(store: str | Path | None = None) -> str:
    """Return a store's MLflow URI: of `store`, else MLFLOW_TRACKING_URI, else of `plo.db` in the working folder.

    A path is the path of a SQLite file. It is made absolute, so that processes in other folders find the same file.
    """
    store = str(store or os.environ.get("MLFLOW_TRACKING_URI") or STORE)
    if store.startswith("sqlite:///"):
        store = store.removeprefix("sqlite:///")
    return store if "://" in store else f"sqlite:///{Path(store).expanduser().resolve()}"


class Store:
    """An MLflow experiment in a store. Both are created if they do not exist.

    A SQLite file is read without MLflow; MLflow is imported when something is recorded.

    Args:
        store: a SQLite file, or any MLflow tracking URI; see `store_uri`.
        experiment: name of the experiment.
        create: whether to create a missing store or experiment; if not, a missing one is an error.
        patient: whether to wait for a server that does not answer at the start, as it does later; if not, it is an error.

    Attributes:
        file: the SQLite file; None for any other store.

    Raises:
        TrackingError: the store cannot be reached or opened, or the experiment is missing or deleted.
    """

    def __init__(
        self, store: str | Path | None = None, experiment: str = "plo", *, create: bool = True, patient: bool = False
    ):
        self.uri, self.experiment, self._patient = store_uri(store), experiment, patient
        self.file = Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:///") else None
        if self.file is not None and self.file.is_dir():
            raise TrackingError(f"The MLflow store {self.file} is a folder: name a file in it, {self.file / STORE}.")
        if self.file is not None and not create and not self.file.exists():
            raise NothingRecorded(f"There is no MLflow store {self.file}. Run `plo compare` first, or give --store.")
        # The lock guards what must happen once: creating the store, the experiment, a comparison, an attempt.
        self._lock = FileLock(f"{self.file}.lock") if self.file is not None else named_lock(self.uri)
        try:
            found = self._created() if create else self._reader.experiments()
        except TrackingError:
            raise
        except Exception as error:
            raise TrackingError(self._not_opened(error)) from error
        own = found.get(experiment)
        if own is None:
            names = ", ".join(sorted(name for name, one in found.items() if one.active))
            raise NothingRecorded(f"There is no experiment {experiment!r} in {self.uri}. It holds: {names}.")
        if not own.active:
            raise TrackingError(
                f"The experiment {experiment!r} in {self.uri} was deleted. Choose another name, or bring it "
                f"back with `mlflow experiments restore --experiment-id {own.id}`."
            )
        self._id, self._former = own.id, place.former_folder(own.artifacts)

    def _created(self) -> dict[str, RecordedExperiment]:
        """Create the store and the experiment if they are missing, and return all experiments."""
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if self.file is not None and not (self.file.exists() and self.file.stat().st_size):
                make_sqlite_store(self.file)
            if self.experiment not in self._reader.experiments():
                artifacts = (self.file.parent / place.ARTIFACTS).as_uri() if self.file is not None else None
                self._client.create_experiment(self.experiment, artifact_location=artifacts)
            _ = self._client  # its errors are raised now
            return self._reader.experiments()

    def _not_opened(self, error: Exception) -> str:
        if fault := disk_fault(error, self.file or self.uri):
            return f"The MLflow store {self.uri} cannot be opened: {fault}"
        reason = str(error).strip().split("\n")[0]
        older = "database schema" in reason or "no such column" in reason
        upgrade = f"Run `mlflow db upgrade {self.uri}`, or" if older else "Repair it, or"
        return f"The MLflow store {self.uri} cannot be opened: {type(error).__name__}: {reason} {upgrade} name another with --store."

    @cached_property
    def _reader(self) -> Reader:
        if self.file is None:
            return ClientReader(self._client)
        return cast(SqliteReader, Patient(SqliteReader(self.file), self.uri))

    @cached_property
    def _client(self) -> Patient:
        """Client that records. Opening it makes a moved or copied store record into its own folder."""
        if self.file is not None:
            with self._lock:
                patiently(partial(place.settle, self.file, self.experiment), self.uri)
        return open_client(self.uri, patient=self._patient)

    def table(self, run_id: str, name: str) -> pd.DataFrame:
        """Return a table of a run that `ActiveRun.table` recorded.

        Raises:
            TrackingError: the run has no such table; `MissingFiles` if the folder of the run's files is missing.
        """
        recorded = self._read(run_id, name)
        return pd.DataFrame(recorded["data"], columns=recorded["columns"])

    def data_input(self, run_id: str, source: str, digest: str) -> None:
        """Show the data set and the first 36 characters of its digest (MLflow's limit) in MLflow's page of a run."""
        entities = import_mlflow().entities
        data = entities.Dataset(
            shortened(source, DATASET), digest[:36], "plo", json.dumps({"source": source, "digest": digest})
        )
        tag = entities.InputTag(CONTEXT, "training")
        self._client.log_inputs(run_id, datasets=[entities.DatasetInput(data, [tag])])

    def recorded_path(self, path: Path) -> str:
        """Return a path as it is recorded: relative if it is in the folder of a SQLite store, else absolute."""
        return place.recorded_path(path, self.file.parent) if self.file is not None else str(Path(path).resolve())

    def current_path(self, recorded: str) -> Path:
        """Return where a path is now that `recorded_path` recorded; it may also be absolute."""
        if self.file is None:
            return Path(recorded)
        return place.here(Path(recorded), self._former, self.file.parent)

    def _search(self, **tags: str) -> list[Run]:
        """List the runs of the experiment that have these tags (`kind` is plo.kind), newest first."""
        names = {"parent": PARENT}
        return self._reader.search(self._id, {names.get(name, f"plo.{name}"): text for name, text in tags.items()})

    def _children(self, parent_id: str, kind: str = "cell") -> list[Run]:
        return self._search(parent=parent_id, kind=kind)

    def _create_run(self, name: str, tags: Mapping[str, Any]) -> str:
        texts, name = {CALL: uuid4().hex}, shortened(name, NAME)
        for key, value in tags.items():
            texts |= tag_parts(key, str(value)) if value is not None else {}
        calls = 0

        def create() -> str:
            nonlocal calls
            calls += 1
            if calls > 1 and (made := self._search(call=texts[CALL])):  # by a call whose answer was lost
                return made[0].run_id
            return self._client._target.create_run(self._id, tags=texts, run_name=name).info.run_id

        return patiently(create, self.uri)

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Record nested parameters with flat names."""
        known = self._client.get_run(run_id).data.params  # MLflow refuses to write a parameter twice
        make = import_mlflow().entities.Param
        new = [one for one in flat(params).items() if one[0] not in known]
        for batch in batches(new, lambda one: len(json.dumps(one))):
            self._client.log_batch(run_id, params=[make(*one) for one in batch])

    def _folder(self, run_id: str) -> Path | None:
        """Return the folder of a run's files if it is on this machine, even if it is missing now."""
        if self.file is None:
            return None
        recorded = place.path_of(self._reader.artifacts(run_id))
        return None if recorded is None else place.here(recorded, self._former, self.file.parent)

    def _planned(self, run_id: str, file: str = "cells.json") -> dict[str, Any]:
        folder = self._folder(run_id)
        lost = folder is not None and not folder.is_dir()  # `_read` reports it
        try:
            return self._read(run_id, file) if lost or self._has_file(run_id, file) else {}
        except MissingFiles:
            raise
        except TrackingError as error:  # killed while writing: the next `plo compare` writes the file again
            log.warning("%s Planned cells that were never started are therefore not listed.", error)
            return {}

    def _has_file(self, run_id: str, name: str) -> bool:
        """Return whether a run has a file of this name at the top of its folder."""
        if (folder := self._folder(run_id)) is not None:
            return (folder / name).exists()
        return any(one.path == name for one in self._client.list_artifacts(run_id))

    def _text(self, run_id: str, name: str) -> str:
        """Return the text of a file of a run."""
        if (folder := self._folder(run_id)) is not None:
            return (folder / name).read_text("utf-8")
        return cast(ClientReader, self._reader).text(run_id, name)

    def _read(self, run_id: str, name: str) -> Any:
        """Return the content of a JSON file of a run.

        Raises:
            TrackingError: the run has no such file; `MissingFiles` if the folder of the run's files is missing.
        """
        folder = self._folder(run_id)
        try:
            return json.loads(self._text(run_id, name))
        except Exception as error:
            if folder is not None and not folder.is_dir():
                raise MissingFiles(
                    f"The files of run {run_id} are not in {folder}, where {self.uri} expects them: moving or "
                    f"copying a store means moving its folder {place.ARTIFACTS} too. Put that folder next to the store."
                ) from error
            raise TrackingError(f"Run {run_id} in {self.uri} has no readable {name}: {error}.") from error


class NothingRecorded(TrackingError):
    """The store, or the experiment in it, does not exist."""


class MissingFiles(TrackingError):
    """The folder of a run's files is missing where the store expects it."""
