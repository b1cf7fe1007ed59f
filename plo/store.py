"""The one place that writes what plo keeps: whole or not at all, and with a sha256 that is verified before it is read.

A value is a file with its checksum in `NAME.sha256` alongside, or a folder with `SHA256SUMS` inside; `sha256sum -c` reads
both. A file is written aside and renamed, its checksum first, so that a reader never meets a value without one.
"""

import contextlib
import glob
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
SUMS = "SHA256SUMS"  # the checksums of a folder's files
UNSUMMED = "has no checksum"
USE_SECONDS = 3600.0  # between two notes that a value was used
ABANDONED = 86_400.0  # seconds after which nobody writes to a partial file any more
log = logging.getLogger(__name__)

_verified: dict[Path, tuple[int, int, int]] = {}  # file: its state when its sha256 was right, in this process
_unsummed: set[Path] = set()  # folders of which a file without checksum was reported


def write(path: Path, writer: Callable[[Path], Any], *, durable: bool = False) -> None:
    """Make the file `path` by `writer(another path)`, whole or not at all, with its checksum. Folders are made.

    Args:
        durable: wait until the disk has it. Values that a later launch can compute again do without: a power failure then
            leaves at worst a file whose checksum is wrong.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    try:
        writer(aside)
        digest, state = _digest(aside), _state(aside)
        if durable:
            _sync(aside)
        _put(_sums(path), f"{digest}  {path.name}\n", durable)
        os.replace(aside, path)
        if durable:
            _sync(path.parent)
        _verified[path] = state
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text file; see `write`."""
    write(path, lambda aside: aside.write_text(text, encoding="utf-8"), durable=durable)


def write_json(path: Path, value: Any, *, durable: bool = False) -> None:
    """Write a JSON file; see `write`."""
    write_text(path, json.dumps(value), durable=durable)


def seal(folder: Path) -> None:
    """Sum up a folder that another library wrote, once all its files are there: from now on `intact` knows it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not _is_sums(file))
    lines = [f"{_digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    for file in files:
        _sync(file)
        _verified[file] = _state(file)
    _put(folder / SUMS, "".join(lines), durable=True)


def is_sealed(folder: Path) -> bool:
    """Whether `seal` summed the folder up. Folders that an earlier version of plo wrote are not."""
    return (folder / SUMS).is_file()


def intact(path: Path) -> bool:
    """Whether a file or folder is there just as it was written. What is damaged is removed, and a warning says so.

    A file is read through once a process, and again only where its size or time changed.
    """
    before = _state(path)
    if before is None:
        return False
    wrong = damage(path)
    if (
        wrong is not None and _state(path) != before
    ):  # another process wrote it meanwhile, and ours is not to be removed
        return intact(path)
    if wrong == UNSUMMED:  # of an earlier version: a line for all of a folder's
        if path.parent not in _unsummed:
            _unsummed.add(path.parent)
            drop(path, f"{wrong} (an earlier version wrote it; others in its folder too)")
        remove(path)
    elif wrong is not None:
        drop(path, wrong)
    else:
        _note_use(path)
    return wrong is None


def values(folder: Path) -> list[Path]:
    """List the files and sealed folders in `folder` that have a checksum."""
    sums = [file for file in sorted(folder.rglob("*")) if _is_sums(file)]
    return [file.parent if file.name == SUMS else file.with_suffix("") for file in sums]


def damage(path: Path) -> str | None:
    """What is wrong with a value that is there, in words; None if it is just as it was written. Nothing is removed."""
    sums = _sums(path)
    try:
        lines = sums.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return UNSUMMED
    base = sums.parent
    for line in lines:
        digest, _, name = line.partition("  ")
        file = base / name
        state = _state(file)
        if state is None:
            return f"lacks {name}"
        if _verified.get(file) == state:
            continue
        if _digest(file) != digest:
            what = "is damaged" if file == path else f"is damaged in {name}"
            return f"{what} (its sha256 is not that of what was written)"
        _verified[file] = state
    return None if lines else "has an empty checksum"


def read(path: Path, reader: Callable[[Path], T]) -> T | None:
    """`reader(path)` of an intact file; None where it is not there, or was damaged and so is there no more."""
    if not intact(path):
        return None
    try:
        return reader(path)
    except Exception as error:  # written whole, and yet not what the reader reads
        # By its name: to import safetensors for a file of JSON, as a leaderboard reads, takes long and another extra.
        if not isinstance(error, OSError | ValueError) and type(error).__name__ != "SafetensorError":
            raise
        drop(path, f"cannot be read ({' '.join(str(error).split())[:100]})")
        return None


def read_json(path: Path) -> Any | None:
    """The value of an intact JSON file; None as in `read`."""
    return read(path, lambda file: json.loads(file.read_text(encoding="utf-8")))


def drop(path: Path, wrong: str) -> None:
    """Remove a value with its checksum, and say so: "PATH is damaged: removed, to be made again."."""
    log.warning("%s %s: removed, to be made again.", path, wrong)
    remove(path)


def remove(path: Path) -> None:
    """Remove a file with its checksum, or a folder, where it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    path.unlink(missing_ok=True)
    _sums(path).unlink(missing_ok=True)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _state(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _sums(path: Path) -> Path:
    return path / SUMS if path.is_dir() else path.with_name(f"{path.name}.sha256")


def _note_use(path: Path) -> None:
    """Let the time of the checksum's file say when the value was last used, to the hour."""
    with contextlib.suppress(OSError):  # it may be on a disk that cannot be written to
        if time.time() - _sums(path).stat().st_mtime > USE_SECONDS:
            os.utime(_sums(path))


def _is_sums(file: Path) -> bool:
    return file.name == SUMS or file.suffix == ".sha256"


def _sweep(path: Path) -> None:
    """Remove what killed processes left of earlier tries to write `path`: by age, as a live one may be on another machine."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError):  # another process removed it
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()


def _put(path: Path, text: str, durable: bool) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        aside.write_text(text, encoding="utf-8")
        if durable:
            _sync(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
