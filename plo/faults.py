"""Faults of the machine rather than of plo: a full or read-only disk, a folder without permission, lack of memory.

Every library reports them in its own way. `sentence` words them in one way, with place and remedy. Many libraries leave the
place out, so what writes files does so inside `on_disk`.
"""

import errno
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plo.errors import PloError

ELSEWHERE = "name another folder (out=FOLDER, --store, the environment variable PLO_HOME)"
FULL = re.compile(r"no space left|disk is full|quota exceeded|os error (28|122)\b|file write failed", re.I)
READ_ONLY = re.compile(r"read-only file system|readonly database|os error 30\b", re.I)
DENIED = re.compile(r"permission denied|unable to open database file|os error 13\b", re.I)
UNCLEAR = re.compile(r"disk i/o error", re.I)  # SQLite's, for any of these and for a broken disk
ROOM = 2**20  # bytes; a disk with less free space counts as full
DISK = {
    errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EROFS: READ_ONLY, errno.EACCES: DENIED, errno.EPERM: DENIED,
}  # fmt: skip
REMEDIES = {  # what follows "FILE cannot be"
    FULL: "written: the disk is full. Make room there",
    READ_ONLY: "written: the disk is read-only. Mount it to be written",
    DENIED: "read or written: permission is denied. Change its permissions",
}
OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|_ALLOC_FAILED", re.I)
PLACES = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOTEMPTY)


class DiskFault(PloError, OSError):
    """An error for a file or folder that cannot be written, or a disk that is full. The message names place and remedy."""


@contextmanager
def on_disk(place: Path | str) -> Iterator[None]:
    """Raise a fault of the disk inside as a `DiskFault` that names the file, or `place` where the error names none."""
    try:
        yield
    except DiskFault:
        raise
    except Exception as error:
        if (fault := disk_fault(error, place)) is None:
            raise
        raise DiskFault(fault) from error


def disk_fault(
    error: BaseException, place: Path | str = "a file of the MLflow store, of --out or of PLO_HOME"
) -> str | None:
    """Return a sentence if `error`, or an error that caused it, is that a disk cannot be written.

    Args:
        place: what the sentence names where the error names no file: a path, or a text such as an address.
    """
    for one in _behind(error):
        if isinstance(one, DiskFault):
            return str(one)
        by_number = DISK.get(getattr(one, "errno", None) or 0)
        by_words = next((kind for kind in REMEDIES if kind.search(str(one))), None)
        if kind := by_number or by_words or (_looked_for(place) if UNCLEAR.search(str(one)) else None):
            named = getattr(one, "filename2", None) or getattr(one, "filename", None) or place
            named = named if named is place and isinstance(place, str) else os.path.abspath(named)
            return f"{named} cannot be {REMEDIES[kind]}, or {ELSEWHERE}, and start the same command again: it goes on where it was."
    return None


def _looked_for(place: Path | str) -> re.Pattern[str] | None:
    """Return what is wrong with the disk of a place, as far as it can be seen."""
    if isinstance(place, str):
        return None
    folder = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.is_dir())
    disk = os.statvfs(folder)
    if disk.f_flag & os.ST_RDONLY:
        return READ_ONLY
    return FULL if disk.f_bavail * disk.f_frsize < ROOM else None


def sentence(error: BaseException) -> str | None:
    """Return a sentence if `error` comes from a fault of the machine, else None."""
    if fault := disk_fault(error):
        return fault
    if isinstance(error, OSError) and error.errno in PLACES and error.filename:
        return f"{error.filename}: {error.strerror}. Name another file or folder."
    if is_out_of_memory(error):
        return "Memory ran out. Lower train.micro_batch_size (pairs per forward pass) or data.max_length, or use a smaller model."
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error`, of Python, NumPy or torch, is that memory of the machine or of the GPU cannot be allocated."""
    if isinstance(error, PloError):
        return False  # its sentence names another remedy
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))


def reason(error: BaseException, longest: int = 250) -> str:
    """Shorten the error of a library to a clause: one line without a full stop. A refused pickle is explained."""
    if isinstance(error, pickle.UnpicklingError):
        return (
            "its weights are a pickle that would run code or is damaged, and plo loads no such pickle; convert weights that "
            "you trust to safetensors"
        )
    text = " ".join(str(error).split()).rstrip(".")
    return f"{text[:longest]}…" if len(text) > longest else text or type(error).__name__


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an error and the errors that it was raised from or during."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
