"""Caches under PLO_HOME: their places and contents, and listing and pruning of their entries.

Writers get the place of an entry from `CACHES[name].path(key)` and write it with `plo.store`. They `hold` or `lock` what
they use, so that `prune` does not remove it while their process runs.
"""

import fcntl
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

from filelock import FileLock

from plo import store
from plo.faults import on_disk
from plo.paths import plo_home, text_digest

FORM = 1  # version of the keys; with another number, `note_form` logs which caches are filled anew
LEFTOVERS = {".lock", ".partial", ".part", ".sha256"}  # suffixes of files next to entries
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cache:
    """One kind of value that plo keeps and can make again.

    Attributes:
        pattern: path of an entry below PLO_HOME, with `*` in place of its key.
        holds: description of an entry.
        remade: description of how an entry is made again after it was removed.
        expensive: whether that costs money or much time, so that `prune` removes entries only if the cache is named.
    """

    name: str
    pattern: str
    holds: str
    remade: str
    expensive: bool = False

    @property
    def folder(self) -> Path:
        """Folder of the entries."""
        return (plo_home() / self.pattern).parent

    def path(self, key: str = "") -> Path:
        """Return the place of the entry with this key."""
        return plo_home() / self.pattern.replace("*", key)


CACHES = {
    cache.name: cache
    for cache in (
        Cache(
            "models", "models/*", "the embedded model, converted", "converted from its package at the next use (20 s)"
        ),
        Cache(
            "tokens",
            "tokens/*.ids",
            "token ids of 256 pairs of long texts",
            "tokenised by the next run on the same pairs",
        ),
        Cache(
            "checks",
            "checks/*.json",
            "a model that was found to compute packed pairs as padded ones",
            "tried at the next load (seconds)",
        ),
        Cache(
            "reference",
            "reference/*.safetensors",
            "log-probs and hidden states of the reference, 256 pairs each",
            "computed by the next run on the same pairs",
        ),
        Cache(
            "stages",
            "stages/*",
            "weights of a stage (SFT, an oracle of a token scorer), with its checkpoints",
            "trained by the next run that needs it",
            expensive=True,
        ),
        Cache("scores", "scores/*", "token weights of a scorer", "computed by the next run that needs them"),
        Cache(
            "answers",
            "answers/*",
            "answers that a policy was sampled for training pairs, or their scores",
            "fetched from the store, or sampled by the next run that needs them",
            expensive=True,
        ),
        Cache(
            "trained",
            "trained/*",
            "trained model of a cell that another machine trained",
            "fetched from the store by the next evaluation",
        ),
        Cache(
            "adapters",
            "adapters/*",
            "reference of a comparison as an adapter, for engines that load it from a folder",
            "written by the next evaluation with such an engine",
        ),
        Cache(
            "outputs",
            "outputs/*",
            "continuations that a model was sampled for evaluations",
            "sampled by the next evaluation of the same model",
        ),
        Cache(
            "server-outputs",
            "outputs/server/*.json",
            "answer of a served model to one prompt",
            "requested from the server by the next evaluation",
            expensive=True,
        ),
        Cache(
            "harness",
            "harness/*.json",
            "answers of a model to lm-eval's tasks, one sample of each document",
            "sampled by the next evaluation of the same model",
        ),
        Cache(
            "calibrations",
            "calibrations/*.json",
            "seconds and memory of a short training, from which plans are estimated",
            "measured by the next plo plan (a minute)",
        ),
        Cache("verdicts", "verdicts.db", "verdicts of all judges", "requested from the judges again", expensive=True),
    )
}


@dataclass(frozen=True)
class Entry:
    """An entry of a cache: a file with its checksum alongside, or a folder of such files."""

    cache: str
    key: str
    path: Path
    held: bool

    @property
    def size(self) -> int:
        """Number of bytes on disk."""
        return sum(file.stat().st_size for file in self._files())

    @property
    def last_use(self) -> float:
        """Time, in seconds since the epoch, when the entry was last written or verified."""
        return max((file.stat().st_mtime for file in self._files()), default=0.0)

    def damage(self) -> str | None:
        """Read all files of the entry, and describe what is wrong with them; None if they are as they were written."""
        if self.path.suffix == ".db":
            try:
                with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
                    [(answer,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
            except sqlite3.Error as error:
                answer = str(error)
            return None if answer == "ok" else answer
        values = [self.path]
        if self.path.is_dir() and not store.is_sealed(self.path):
            values = store.values(self.path)
        return next((damage for value in values if (damage := store.damage(value))), None)

    def remove(self) -> None:
        """Delete the entry and its checksum."""
        store.remove(self.path)
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        if self.path.is_dir():
            return [file for file in self.path.rglob("*") if file.is_file()]
        beside = (self.path.with_name(self.path.name + end) for end in ("", ".sha256", "-wal", "-shm"))
        return [file for file in beside if file.exists()]


def entries(names: Iterable[str] | None = None) -> list[Entry]:
    """List the entries of the caches `names`, or of all of them, in the order of `CACHES`.

    Raises:
        KeyError: there is no cache of that name.
    """
    with _uses_lock():
        held = _held()
    folders = {cache.folder for cache in CACHES.values()}
    found = []
    for name in CACHES if names is None else names:
        pattern = CACHES[name].pattern
        for path in sorted(plo_home().glob(pattern)):
            if path.suffix not in LEFTOVERS and path not in folders:
                key = path.name.removesuffix(pattern.rpartition("*")[2])
                found.append(Entry(name, key, path, path in held))
    return found


def prune(
    names: Iterable[str] | None = None,
    *,
    unused_for: float | None = None,
    keep_bytes: float | None = None,
    dry_run: bool = False,
) -> tuple[list[Entry], list[Entry]]:
    """Delete entries of the caches `names`, or of all caches that are not expensive to fill again.

    Without `unused_for` and `keep_bytes` all entries are deleted. Entries that a running process uses always stay.

    Args:
        unused_for: delete entries that were not used for this number of seconds.
        keep_bytes: delete the least recently used entries until the rest takes at most this number of bytes.
        dry_run: delete nothing, and return what would be deleted.

    Returns:
        The deleted entries, and those that stay only because a running process uses them.
    """
    if names is None:
        names = [cache.name for cache in CACHES.values() if not cache.expensive]
    removed, held, kept = [], [], 0.0
    for entry in sorted(entries(names), key=lambda entry: entry.last_use, reverse=True):
        old = unused_for is not None and time.time() - entry.last_use > unused_for
        too_much = keep_bytes is not None and kept + entry.size > keep_bytes
        if not (old or too_much or (unused_for is None and keep_bytes is None)):
            kept += entry.size
            continue
        with _uses_lock():  # no process can begin to use the entry now
            in_use = entry.path in _held()
            if not in_use and not dry_run:
                entry.remove()
        (held if in_use else removed).append(entry)
    return removed, held


_uses: dict[Path, IO[str]] = {}  # by PLO_HOME: open file that lists what this process holds
_holding: set[Path] = set()
_threads = threading.Lock()


def hold(path: Path) -> None:
    """Keep `prune` from removing an entry until this process ends. Call it before checking that the entry exists."""
    with _threads:
        if path in _holding:
            return
        with on_disk(plo_home()), _uses_lock():
            uses = _uses.get(plo_home())
            if uses is None:
                uses = _uses[plo_home()] = (locks_folder() / f"{uuid4().hex}.uses").open("w", encoding="utf-8")
                fcntl.flock(uses, fcntl.LOCK_EX)  # the system releases it, however the process ends
            uses.write(f"{path}\n")
            uses.flush()
        _holding.add(path)


def lock(path: Path) -> FileLock:
    """Return the lock under which an entry is made, so that no two processes make it, and `hold` the entry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hold(path)
    return FileLock(f"{path}.lock")


def named_lock(*names: str) -> FileLock:
    """Return a lock for something that is not a file, in a folder that only this user can write to."""
    return FileLock(locks_folder() / f"{text_digest(' '.join(names))[:16]}.lock")


def locks_folder() -> Path:
    """Return the folder of locks below PLO_HOME. It is created if it is missing."""
    folder = plo_home() / "locks"
    folder.mkdir(exist_ok=True)
    return folder


def note_form() -> None:
    """Log once that entries of another version of plo are not used."""
    file = plo_home() / "form"
    known = file.read_text().strip() if file.exists() else None
    if known == str(FORM):
        return
    if entries(["reference"]):  # keys of the other caches have not changed
        log.warning(
            "Another version of plo wrote the cache of references in %s with other keys: what is needed is computed again. "
            "`plo cache prune --name reference --yes` frees the space.",
            plo_home(),
        )
    with on_disk(file):
        file.write_text(f"{FORM}\n")


def _uses_lock() -> FileLock:
    return FileLock(locks_folder() / "uses.lock")


def _held() -> frozenset[Path]:
    """Return the paths that running processes hold, and remove lists of ended ones. Requires `_uses_lock`."""
    held: set[Path] = set()
    for file in locks_folder().glob("*.uses"):
        with file.open("r+", encoding="utf-8") as uses:
            try:
                fcntl.flock(uses, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held |= {Path(line) for line in uses.read().splitlines()}
            else:
                file.unlink(missing_ok=True)
    return frozenset(held)
