"""Files and folders that are written completely or not at all, with a sha256 that is verified before they are read.

A value is a file with its checksum in `NAME.sha256` alongside, or a folder with `SHA256SUMS` inside; `sha256sum -c` reads
both. A file is written under another name and renamed after its checksum, so that a reader never finds it without one.
"""

import contextlib
import glob
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from plo.faults import on_disk
from plo.paths import content_digest

T = TypeVar("T")
SUMS = "SHA256SUMS"  # the checksums of a folder's files
UNSUMMED = "has no checksum"
USE_SECONDS = 3600.0  # resolution of the time of last use
ABANDONED = 86_400.0  # seconds after which a partial file belongs to a process that ended
log = logging.getLogger(__name__)

_verified: dict[Path, tuple[int, int, int] | None] = {}  # state of each file when this process found its sha256 right
_unsummed: set[Path] = set()  # folders for which a missing checksum was reported


def write(path: Path, writer: Callable[[Path], Any], *, durable: bool = False) -> None:
    """Write the file `path` with `writer(temporary path)`, completely or not at all, with its checksum.

    Missing folders are created.

    Args:
        durable: wait until the disk has the file. Values that can be computed again need not wait: the worst that a power
            failure leaves is a file with a wrong checksum.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    with on_disk(path), _replacing(path, durable) as aside:
        writer(aside)
        state = _state(aside)
        with _replacing(_sums(path), durable) as sums:
            sums.write_text(f"{content_digest(aside)}  {path.name}\n", encoding="utf-8")
    if durable:
        _sync(path.parent)
    _verified[path] = state


def write_text(path: Path, text: str) -> None:
    """Write a text as `write_bytes` does; a lone surrogate becomes an escape as in JSON."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file for readers completely or not at all, without a checksum. Missing folders are created."""
    with on_disk(path), _replacing(path, durable=False) as aside:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)


def write_json(path: Path, value: Any, *, durable: bool = False) -> None:
    """Write a JSON file; see `write`."""
    write(path, lambda aside: aside.write_text(json.dumps(value), encoding="utf-8"), durable=durable)


def seal(folder: Path) -> None:
    """Write the checksums of a folder that another library has written completely; `intact` verifies them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not _is_sums(file))
    lines = [f"{content_digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    for file in files:
        _sync(file)
        _verified[file] = _state(file)
    with on_disk(folder), _replacing(folder / SUMS, durable=True) as sums:
        sums.write_text("".join(lines), encoding="utf-8")


def is_sealed(folder: Path) -> bool:
    """Return whether `seal` was called for the folder. Folders of early versions of plo are not sealed."""
    return (folder / SUMS).is_file()


def intact(path: Path) -> bool:
    """Return whether a file or folder exists exactly as it was written. A damaged one is removed, with a warning.

    Each process reads a file completely once, and again only if its size or time of change differs.
    """
    before = _state(path)
    if before is None:
        return False
    wrong = damage(path)
    if wrong is not None and _state(path) != before:  # another process has written it since: the new file stays
        return intact(path)
    if wrong == UNSUMMED:  # written by an early version: one line for all files of a folder
        if path.parent not in _unsummed:
            _unsummed.add(path.parent)
            drop(path, f"{wrong} (an early version of plo wrote it, and others in its folder)")
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


def checksums(folder: Path) -> dict[str, str]:
    """Return {name: sha256} of the files of a sealed folder, or of those in an unsealed folder that have a checksum alongside.

    Only checksums are read.
    """
    sums = [folder / SUMS] if is_sealed(folder) else sorted(folder.glob("*.sha256"))
    lines = (line.partition("  ") for file in sums for line in file.read_text(encoding="utf-8").splitlines())
    return {name: digest for digest, _, name in lines}


def damage(path: Path) -> str | None:
    """Describe what is wrong with an existing value; None if it is exactly as it was written. Nothing is removed."""
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
        if content_digest(file) != digest:
            what = "is damaged" if file == path else f"is damaged in {name}"
            return f"{what} (its sha256 differs from the recorded one)"
        _verified[file] = state
    return None if lines else "has an empty checksum"


def read(path: Path, reader: Callable[[Path], T]) -> T | None:
    """Return `reader(path)` of an intact file; None if the file is missing, or was damaged and is therefore removed."""
    if not intact(path):
        return None
    try:
        return reader(path)
    except Exception as error:  # written completely, but not in the format of the reader
        # The name is compared because importing safetensors is slow, and a leaderboard, which reads JSON alone, must not need it.
        if not isinstance(error, OSError | ValueError) and type(error).__name__ != "SafetensorError":
            raise
        drop(path, f"cannot be read ({' '.join(str(error).split())[:100]})")
        return None


def read_json(path: Path) -> Any | None:
    """Return the value of an intact JSON file; None as in `read`."""
    return read(path, lambda file: json.loads(file.read_text(encoding="utf-8")))


def drop(path: Path, wrong: str) -> None:
    """Remove a value with its checksum, and log "PATH is damaged: removed; it is made anew."."""
    log.warning("%s %s: removed; it is made anew.", path, wrong)
    remove(path)


def remove(path: Path) -> None:
    """Remove a file with its checksum, or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    path.unlink(missing_ok=True)
    _sums(path).unlink(missing_ok=True)


def _state(file: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        found = file.stat()
        return found.st_size, found.st_mtime_ns, found.st_ino
    return None


def _sums(path: Path) -> Path:
    return path / SUMS if path.is_dir() else path.with_name(f"{path.name}.sha256")


def _note_use(path: Path) -> None:
    """Set the time of change of the checksum's file, which is the time of the value's last use, to the hour."""
    with contextlib.suppress(OSError):  # the disk may be read-only
        if time.time() - _sums(path).stat().st_mtime > USE_SECONDS:
            os.utime(_sums(path))


def _is_sums(file: Path) -> bool:
    return file.name == SUMS or file.suffix == ".sha256"


def _sweep(path: Path) -> None:
    """Remove old partial files of `path` that killed processes left; recent ones may belong to a process elsewhere."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError):  # another process removed it
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()


@contextlib.contextmanager
def _replacing(path: Path, durable: bool) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `path` unless the block raises."""
    aside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        yield aside
        if durable:
            _sync(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until the disk has the content of a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
