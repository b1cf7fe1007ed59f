"""Outbox of a run: what is recorded is kept on disk until the store has it.

The outbox of a run is a file `PLO_HOME/records/RUN.jsonl`: a header, then one record a line, in the order of recording. The
file is locked while its process lives. A process that is killed therefore leaves what was not sent yet, and another one can
tell. Records may be sent twice, which the store does not show: it keeps one of two equal points of a curve.
"""

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from plo.paths import plo_home
from plo.tracking.limits import BYTES, METRICS, OTHERS

Record = list[
    Any
]  # ["metrics", [[name, value, time, step], ...]], ["tag", name, text], ["text", file, content], ["end", status]
REFUSED = ".refused"  # suffix of an outbox that the store will never take


def folder() -> Path:
    """Return the folder of all outboxes. It is created if it is missing."""
    made = plo_home() / "records"
    made.mkdir(exist_ok=True)
    return made


class Outbox:
    """Records of one run that the store does not have yet. Threads may share it.

    Args:
        path: where the file is.
        file: the file, open and locked.
        header: what the run is, as JSON values.
        start: length of the header in bytes.
    """

    def __init__(self, path: Path, file: FileIO, header: Mapping[str, Any], start: int):
        self.path, self.header = path, header
        self._file, self._lock = file, threading.Lock()
        self._start = self._sent = start
        self._size = os.fstat(file.fileno()).st_size

    @classmethod
    def create(cls, run_id: str, header: Mapping[str, Any]) -> "Outbox":
        """Make the outbox of a new run."""
        path = folder() / f"{run_id}.jsonl"
        file = FileIO(path, "a")
        fcntl.flock(file, fcntl.LOCK_EX)  # another process may be looking at it
        made = cls(path, file, header, 0)
        made.add([header])
        made._start = made._sent = made._size
        return made

    @classmethod
    def left(cls, store: str) -> Iterator["Outbox"]:
        """Iterate over the outboxes of records for `store` whose processes have ended, oldest first."""
        for path in sorted(folder().glob("*.jsonl"), key=_changed):
            with contextlib.suppress(FileNotFoundError, BlockingIOError), FileIO(path, "r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while the process lives
                line = file.readline()
                header = json.loads(line)[0] if line.endswith(b"\n") else {}
                if header.get("store") == store:
                    yield cls(path, file, header, len(line))

    @property
    def is_empty(self) -> bool:
        """True if the store has every record of this outbox."""
        return self._sent >= self._size

    def add(self, record: Record) -> None:
        """Write a record. When this returns, it survives the end of the process.

        Raises:
            OSError: the disk is full; nothing of the record is kept.
        """
        line = (json.dumps(record) + "\n").encode()
        with self._lock:
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._file.fileno(), line[written:])
            except OSError as error:
                os.ftruncate(self._file.fileno(), self._size)
                error.filename = str(self.path)
                raise
            self._size += len(line)

    def next(self) -> tuple[list[Record], int]:
        """Return the next records that one call can send, and the position after them, which `sent` takes.

        Metrics and tags go together. A file and the end of the run go alone.
        """
        records, metrics, tags = list[Record](), 0, 0
        with self._lock:
            position = first = self._sent
            end = self._size
        if position == end:
            return [], position
        with self.path.open("rb") as file:
            file.seek(position)
            while position < end and (line := file.readline()).endswith(b"\n"):
                record = json.loads(line)
                metrics += len(record[1]) if record[0] == "metrics" else 0
                tags += record[0] == "tag"
                batched = record[0] in ("metrics", "tag")
                full = metrics + tags > METRICS or tags > OTHERS or position + len(line) - first > BYTES
                if records and (full or not batched):
                    break
                records.append(record)
                position += len(line)
                if not batched:
                    break
        return records, position

    def sent(self, position: int) -> None:
        """Note that the store has everything before `position`. The file shrinks when it has everything."""
        with self._lock:
            self._sent = position
            if self._sent >= self._size:
                os.ftruncate(self._file.fileno(), self._start)
                self._sent = self._size = self._start

    def sync(self) -> None:
        """Wait until the disk has the records, so that they survive a failure of power."""
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Delete the outbox."""
        self._sent = self._size
        self.path.unlink(missing_ok=True)
        self._file.close()

    def refuse(self) -> Path:
        """Put the outbox aside, so that no process tries to send it again, and return where it is."""
        aside = self.path.with_suffix(REFUSED)
        self.path.rename(aside)
        self._file.close()
        return aside


def _changed(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
