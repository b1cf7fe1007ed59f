"""Recording of comparisons in MLflow, and reading them back. No other package imports MLflow.

A **comparison** is a parent run. Its children are **cells** (one variant, one seed each), **stages** (what is trained or
computed before cells can run, recorded once per store) and **evaluations** of a trained cell. All tags are flat and begin
with `plo.`. A run without the status FINISHED does not count: the next attempt supersedes what a killed process left.
"""

from plo import extras

extras.require("track", "plo.tracking")

from plo.tracking.archive import export
from plo.tracking.artifacts import MODEL, STAGE, Artifact
from plo.tracking.claims import ClaimLost, Held
from plo.tracking.importing import Imported, import_archive
from plo.tracking.limits import allowed_name
from plo.tracking.patience import ServerAway, TrackingError
from plo.tracking.reading import (
    ANY,
    EXPERIMENT,
    MADE_WITH,
    Comparison,
    Finding,
    ModelLost,
    RecordedCell,
    RecordedStage,
    made_with_file,
    plugin_file,
    tables,
)
from plo.tracking.recording import ActiveRun, unrecorded
from plo.tracking.runs import Run
from plo.tracking.store import MissingFiles, NothingRecorded, store_uri
from plo.tracking.tracker import Tracker, closing

__all__ = [
    "ANY",
    "EXPERIMENT",
    "MADE_WITH",
    "MODEL",
    "STAGE",
    "ActiveRun",
    "Artifact",
    "ClaimLost",
    "Comparison",
    "Finding",
    "Held",
    "Imported",
    "MissingFiles",
    "ModelLost",
    "NothingRecorded",
    "RecordedCell",
    "RecordedStage",
    "Run",
    "ServerAway",
    "Tracker",
    "TrackingError",
    "allowed_name",
    "closing",
    "export",
    "import_archive",
    "made_with_file",
    "plugin_file",
    "store_uri",
    "tables",
    "unrecorded",
]
