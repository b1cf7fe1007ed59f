"""Files of a suite: from a local copy of its repository, in whichever of the usual places they lie, or from the hub."""

from pathlib import Path, PurePosixPath
from typing import Any

from plo.data.files import read_path
from plo.evals.registry import EvaluationError


def suite_file(evaluation: str, folder: Path | None, name: str, repository: str, *, kind: str = "dataset") -> Path:
    """Return the path of a suite's file, in a local folder or from the hub.

    Args:
        folder: a local copy of the repository, or any folder on the way to the file in it; None: the hub.
        name: path of the file in the repository, "data/arena-hard-v2.0/question.jsonl".
        repository: name on the hub.
        kind: "dataset", "model" or "space".

    Raises:
        EvaluationError: the folder lacks the file, or it cannot be downloaded.
    """
    if folder is None:
        return from_hub(repository, name, f"name a folder with the file: {evaluation}(data=FOLDER)", kind=kind)
    if (found := find_file(folder, name)) is None:
        raise EvaluationError(
            f"The folder {folder} has no {name}: put that file of {hub_name(repository, kind)} there, or name no folder to "
            f"have it downloaded."
        )
    return found


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file of this name in a folder; the folder may also be one of those that the name leads through."""
    parts = PurePosixPath(name).parts
    places = (folder.expanduser().joinpath(*parts[start:]) for start in range(len(parts)))
    return next((place for place in places if place.is_file()), None)


def from_hub(repository: str, name: str, remedy: str, *, kind: str = "dataset") -> Path:
    """Return the path of a downloaded file.

    Args:
        remedy: what to do offline, a clause.

    Raises:
        EvaluationError: it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, repo_type=kind))
    except Exception as error:  # of many kinds, from no network to a file that is gone
        raise EvaluationError(
            f"{name} of {hub_name(repository, kind)} cannot be downloaded ({type(error).__name__}: {error}). Offline, {remedy}."
        ) from error


def hub_name(repository: str, kind: str) -> str:
    """Return a repository's name with its kind, for messages."""
    return f"the hub's {'data set' if kind == 'dataset' else kind} {repository}"


def read_fields(path: Path, *fields: str) -> list[dict[str, Any]]:
    """Return the rows of a suite's file, each with these fields.

    Raises:
        EvaluationError: a row lacks a field.
        DataError: the file cannot be read, or has no rows.
    """
    rows = list(read_path(path))
    for row in rows:
        if lacking := [field for field in fields if row.get(field) is None]:
            raise EvaluationError(f"{row['where']}: no {', '.join(lacking)}. A row has {', '.join(fields)}.")
    return rows
