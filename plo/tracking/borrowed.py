"""Names of MLflow that are not documented: its tables in a SQLite file, variables of the environment, tags, loggers, errors."""

import re
import sqlite3

from plo.borrowed import Library

MLFLOW = Library("mlflow", tried=("3.17.2",))
PARENT, CONTEXT = "mlflow.parentRunId", "mlflow.data.context"
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # `patience` decides, which logs that it waits
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
NO_ANSWER = re.compile(  # in errors of a server; some have no other sign of their cause
    r"API request to \S+ failed with (timeout )?exception|Connection (aborted|broken)|Read timed out"
)
HISTORIES = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"  # of a server, for its own page
UNAVAILABLE = "TEMPORARILY_UNAVAILABLE"  # code of errors of a database's connection
REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_STATE",
    "BAD_REQUEST",
}  # codes that stay true
TABLES = {
    "experiments": "name experiment_id lifecycle_stage artifact_location",
    "runs": "run_uuid name experiment_id status artifact_uri lifecycle_stage start_time",
    "tags": "run_uuid key value",
    "params": "run_uuid key value",
    "latest_metrics": "run_uuid key value is_nan",
    "metrics": "run_uuid key value is_nan step timestamp",
    "inputs": "destination_id",
}


def check_mlflow() -> None:
    """Check MLflow itself, once it is imported.

    Raises:
        BorrowedError: it would ignore what plo sets, or show cells without their comparison.
    """
    MLFLOW.require("mlflow.environment_variables", *ENVIRONMENT)
    MLFLOW.require("mlflow.store.db.utils", "_logger")
    MLFLOW.require("mlflow.utils.rest_utils", "http_request(host_creds, endpoint, method)")
    repository = "mlflow.store.artifact.artifact_repo:ArtifactRepository"
    MLFLOW.require(repository, "_download_file(self, remote_file_path, local_path)")
    MLFLOW.require("mlflow.tracking._tracking_service.client", "TrackingServiceClient")
    tags = MLFLOW.require("mlflow.utils.mlflow_tags", "MLFLOW_PARENT_RUN_ID", "MLFLOW_DATASET_CONTEXT")
    if (tags.MLFLOW_PARENT_RUN_ID, tags.MLFLOW_DATASET_CONTEXT) != (PARENT, CONTEXT):
        raise MLFLOW.error(f"the tags {PARENT} and {CONTEXT} have other names")


def check_tables(connection: sqlite3.Connection) -> None:
    """Check the tables and columns that are read and written without MLflow.

    Raises:
        BorrowedError: one is gone, of a store that MLflow made.
    """
    for table, columns in TABLES.items():
        there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        if there and (gone := set(columns.split()) - there):
            raise MLFLOW.error(f"its SQLite store has no such column as {table}.{min(gone)}")
