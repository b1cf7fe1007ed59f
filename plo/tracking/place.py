"""Places of a SQLite store's files, relative to the store, so that a moved or copied folder stays complete.

MLflow records the absolute address of every run's folder. plo makes those folders in `mlartifacts` alongside the SQLite file:
the part of an address after `mlartifacts` finds a file, and the part before it is the folder that the store was in.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from plo.tracking.runs import LOCKED_SECONDS

ARTIFACTS = "mlartifacts"


def path_of(address: str) -> Path | None:
    """Return the local path of `file:///a/b` or `/a/b`; None for any other kind of address."""
    parts = urlsplit(address)
    if parts.scheme not in ("", "file") or not parts.path:
        return None
    return Path(unquote(parts.path) if parts.scheme else address)


def former_folder(artifacts: str) -> Path | None:
    """Return the folder that a store was in when its address of artifacts was recorded; None if plo did not make it."""
    path = path_of(artifacts)
    return path.parent if path is not None and path.name == ARTIFACTS else None


def here(path: Path, former: Path | None, folder: Path) -> Path:
    """Return where a recorded path is now.

    Args:
        path: the path as recorded; a relative path is relative to the store.
        former: folder that the store was in when the path was recorded; None if that is not known.
        folder: folder that the store is in now.
    """
    if not path.is_absolute():
        return folder / path
    if former is None or former == folder or not path.is_relative_to(former):
        return path
    moved = folder / path.relative_to(former)
    return moved if moved.exists() or not path.exists() else path  # only the store's file may have been moved


def recorded_path(path: Path, folder: Path) -> str:
    """Return a path as it is recorded: relative if it is inside the store's folder, else absolute."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def settle(file: Path, experiment: str) -> None:
    """Rewrite the addresses in a moved or copied store, so that MLflow records into the store's own folder.

    Args:
        experiment: name of the MLflow experiment that plo records in. Other experiments in the store stay as they are.

    Raises:
        sqlite3.Error: the file is not such a database, is read-only, or another process holds it locked.
    """
    folder = file.parent
    own = (folder / ARTIFACTS).as_uri()
    with closing(sqlite3.connect(file, timeout=LOCKED_SECONDS)) as connection, connection:
        found = "SELECT experiment_id, artifact_location FROM experiments WHERE name = ?"
        for number, address in connection.execute(found, [experiment]).fetchall():
            former = former_folder(address or "")
            if former is None or former == folder:
                continue
            connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", [own, number])
            of_runs = "SELECT run_uuid, artifact_uri FROM runs WHERE experiment_id = ? AND artifact_uri LIKE ? || '/%'"
            for run, recorded in connection.execute(of_runs, [number, address]).fetchall():
                now = here(path_of(recorded) or Path(), former, folder)
                connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", [now.as_uri(), run])
            of_folders = "SELECT run_uuid, value FROM tags WHERE key = 'plo.folder'"
            for run, recorded in connection.execute(of_folders).fetchall():
                value = recorded_path(here(Path(recorded), former, folder), folder)
                connection.execute("UPDATE tags SET value = ? WHERE key = 'plo.folder' AND run_uuid = ?", [value, run])
