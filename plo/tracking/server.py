"""Reading from a tracking server in few requests. MLflow's client makes several per file, and one per curve."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plo.tracking.borrowed import HISTORIES

MOST_RUNS, MOST_POINTS = 100, 25_000  # of one request for curves


def read_text(client: Any, address: str, name: str) -> str:
    """Return the text of a file in the folder `address` of a run's files: one request, or two.

    MLflow's client asks for the address and for a list of the files first.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with tempfile.TemporaryDirectory() as aside:
        file = Path(aside, "file")
        get_artifact_repository(address, tracking_uri=client.tracking_uri)._download_file(name, str(file))
        return file.read_text("utf-8")


def histories(client: Any, runs: Sequence[str], metric: str) -> dict[str, list[Any]] | None:
    """Return the points of a metric of up to `MOST_RUNS` runs; None if the server cannot tell, or there are too many points."""
    from mlflow.utils.rest_utils import http_request

    if not client.tracking_uri.startswith("http"):
        return None
    credentials = client._tracking_client.store.get_host_creds()
    answer: Any = http_request(credentials, HISTORIES, "GET", params={"run_id": list(runs), "metric_key": metric})
    points = answer.json().get("metrics") if answer.status_code == 200 else None
    if points is None or len(points) >= MOST_POINTS:
        return None
    found: dict[str, list[Any]] = {run: [] for run in runs}
    for point in points:
        found[point["run_id"]].append((point["step"], point["timestamp"], float(point["value"])))
    return found
