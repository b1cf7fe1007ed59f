"""All that speaks to MLflow: recording a comparison and its cells, and reading them back.

A **comparison** is a parent run, a **cell** (one loss, one seed) a child of it, and so is a **stage**: what had to be trained
or computed before cells could run, recorded once a store. All tags are flat and begin
with `plo.`. A cell that did not end with status FINISHED does not count: what a killed process left behind is
superseded by the next attempt.
"""

from plo import extras

extras.require("track", "plo.tracking")

from plo.tracking.client import TrackingError
from plo.tracking.reading import ANY, Comparison, Finding, RecordedCell, tables
from plo.tracking.recording import ActiveRun, Unrecorded
from plo.tracking.store import MissingFiles, NothingRecorded, allowed_name, store_uri
from plo.tracking.tracker import Tracker, closing

__all__ = [
    "ANY",
    "ActiveRun",
    "Comparison",
    "Finding",
    "MissingFiles",
    "NothingRecorded",
    "RecordedCell",
    "Tracker",
    "TrackingError",
    "Unrecorded",
    "allowed_name",
    "closing",
    "store_uri",
    "tables",
]
