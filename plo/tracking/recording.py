"""Recording of a run: of a cell, a stage or an evaluation; or of none, in processes that record nothing."""

import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import pandas as pd

from plo.faults import disk_fault
from plo.interrupt import requested
from plo.metric import Metric
from plo.tracking import artifacts
from plo.tracking.claims import ClaimLost, Claims
from plo.tracking.limits import METRICS, allowed_name, shortened, tag_parts
from plo.tracking.patience import TrackingError
from plo.tracking.sending import Sender

T = TypeVar("T")
log = logging.getLogger(__name__)
DESCRIBED = "plo.metric."  # prefix of the tags that describe metrics


class ActiveRun:
    """Run that is being recorded: an attempt at a cell, a stage or an evaluation. `Tracker` starts it; `run_id` is MLflow's.

    What is recorded is on disk when a method returns, and in the store about a second later. `finish` and `fail` wait until
    the store has everything; see `plo.tracking.sending`.
    """

    def __init__(self, claims: Claims, run_id: str):
        self.run_id = run_id
        self._claims, self._tracker, self._sender = claims, claims.store, Sender(claims, run_id)
        self._step = self._time = 0
        self._tables: list[dict[str, str]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a training step. NaN and infinities are kept."""
        self._claims.check(self.run_id)
        # MLflow calls the later of two values at one step the latest; within one millisecond it takes the larger one.
        self._time = max(int(time.time() * 1000), self._time + 1)
        self._step = max(self._step, step)
        points = [[allowed_name(name), float(value), self._time, int(step)] for name, value in metrics.items()]
        for start in range(0, len(points), METRICS):
            self._sender.put("metrics", points[start : start + METRICS])

    def table(self, frame: pd.DataFrame, name: str) -> None:
        """Record a frame as a JSON table that MLflow's page shows. Floats are exact; NaN and infinities become null."""
        data = [[_plain(value) for value in row] for row in frame.itertuples(index=False, name=None)]
        text = json.dumps({"columns": list(frame.columns), "data": data}, allow_nan=False)
        self.text(text, name)
        self._tables.append({"path": name, "type": "table"})
        self.tag("mlflow.loggedArtifacts", json.dumps(self._tables))

    def text(self, content: str, name: str) -> None:
        """Record a text as a file."""
        self._sender.put("text", name, content)

    def finding(
        self, evaluation: str, metrics: Mapping[str, float], items: pd.DataFrame, about: Mapping[str, Any]
    ) -> None:
        """Record what an evaluation found, which `Finding` reads back, and close the run."""
        self.table(items, f"{evaluation}.json")
        self.text(json.dumps(about), "about.json")
        self.finish({f"{evaluation}.{name}": value for name, value in metrics.items()})

    def describe(self, metrics: Iterable[Metric]) -> None:
        """Record the descriptions of the run's metrics; `RecordedCell.described` reads them."""
        for metric in metrics:
            name = allowed_name(metric.name)  # the name under which `log` records the values
            self.tag(f"{DESCRIBED}{name}", json.dumps(metric.to_dict() | {"name": name}))

    def tag(self, name: str, value: str) -> None:
        """Set a flat tag, whose value may have any length."""
        for part in tag_parts(name, value).items():
            self._sender.put("tag", *part)

    def folder(self, path: Path) -> None:
        """Record the folder of the trained model; `RecordedCell.folder` finds it even after store and folder were moved."""
        self.tag("plo.folder", self._tracker.recorded_path(path))

    def artifacts(self, folder: Path, name: str) -> None:
        """Record the files of a folder, which have checksums, in the run's folder `name`. `Artifact.fetch` reads them back."""
        self.tag(f"{artifacts.TAG}{name}", artifacts.upload(self._tracker, self.run_id, folder, name))

    def finish(self, metrics: Mapping[str, float] | None = None) -> None:
        """Record the final numbers at the last logged step, and close the run. From then on the cell counts.

        Raises:
            ServerAway: the server did not answer. The next start of a `Tracker` with the same store closes the run.
            ClaimLost: another process has taken the cell over, and the attempt does not count.
        """
        if metrics:
            self.log(metrics, self._step)
        self._claims.check(self.run_id)
        self._sender.end("FINISHED")

    def fail(self, error: BaseException) -> None:
        """Close the run as FAILED, or as KILLED if it was interrupted, with the traceback in error.txt."""
        if isinstance(error, ClaimLost):  # the process that took over has closed the run
            self._claims.release(self.run_id)
            self._sender.discard()
        elif not self._sender.ended:  # else it is finished, and the store will have it
            killed = isinstance(error, KeyboardInterrupt) or requested()  # a library may have replaced the exception
            why = ["tag", "plo.error", shortened(f"{type(error).__name__}: {error}", 500)]
            traced = ["text", "error.txt", "".join(traceback.format_exception(error))]
            try:
                self._sender.end("KILLED" if killed else "FAILED", [why, traced])
            except (TrackingError, OSError) as untold:  # `error` is what the user must read
                log.warning("%s", disk_fault(untold) or untold)
                self._claims.release(
                    self.run_id
                )  # it reads RUNNING until the next attempt, which need not be of another process


class Unrecorded:
    """Substitute for an `ActiveRun`, or another `kind`, in a process that records nothing. All its methods return None.

    A name that `kind` does not have is an AttributeError, as it is in the process that records.
    """

    run_id = None

    def __init__(self, kind: type):
        self._kind = kind

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_") or not callable(getattr(self._kind, name, None)):
            raise AttributeError(f"{self._kind.__name__} has no method {name!r}")
        return lambda *arguments, **keywords: None


def unrecorded(kind: type[T]) -> T:
    """Return a substitute for an object of class `kind` that records nothing."""
    return cast(T, Unrecorded(kind))


def _plain(value: Any) -> Any:
    """Return a JSON value: NumPy scalars unwrapped, NaN and infinities as null."""
    value = value.item() if hasattr(value, "item") else value
    return None if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)) else value
