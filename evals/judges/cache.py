"""Verdicts on disk: one SQLite file that processes share, so that nothing is paid for twice."""

import contextlib
import hashlib
import json
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock

from plo import caches
from plo.evals.judges.judge import Judge, JudgeError, Question, Verdict
from plo.evals.judges.template import without_surrogates

# p is NULL after `tries` unreadable answers. `sum` detects flipped bits in a value, which SQLite does not.
_TABLE = """CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, p REAL, answer TEXT NOT NULL, tries INTEGER NOT NULL,
    time TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, sum TEXT
) WITHOUT ROWID"""
# Files of the first form had p NOT NULL and a column `cost` in the place of `tries`.
_FROM_FIRST_FORM = (
    "BEGIN IMMEDIATE",
    "ALTER TABLE verdicts RENAME TO first_form",
    _TABLE,
    "INSERT INTO verdicts SELECT key, judge, p, answer, 1, time, row_sum(key, p, answer) FROM first_form",
    "DROP TABLE first_form",
    "COMMIT",
)
# Files of the second form had no sums.
_FROM_SECOND_FORM = (
    "BEGIN IMMEDIATE",
    "ALTER TABLE verdicts ADD COLUMN sum TEXT",
    "UPDATE verdicts SET sum = row_sum(key, p, answer)",
    "COMMIT",
)
_PUT = """INSERT INTO verdicts (key, judge, p, answer, tries, sum) VALUES (?, ?, ?, ?, 1, ?)
    ON CONFLICT (key) DO UPDATE SET p = excluded.p, answer = excluded.answer, sum = excluded.sum, tries = tries + 1
    WHERE p IS NULL"""


def key_of(judge: Judge, question: Question) -> str:
    """Return the sha256 of the judge's name and version, the three texts in the order shown, and a repeat's number."""
    content = [judge.name, judge.version, question.prompt, question.a, question.b]
    content += [question.repeat] if question.repeat else []
    # surrogatepass: a text cut inside a surrogate pair is not valid Unicode, but needs a key of its own too.
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _row_sum(key: str, p: float | None, answer: str) -> str:
    content = repr((key, p if p is None else float(p), answer))
    return hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()


class VerdictCache:
    """Cache of verdicts by judge, its version, and the texts in the order shown.

    Processes and threads may share a file: a verdict is on disk when `put` returns. The file must be on a local disk
    (SQLite's write-ahead log needs shared memory).

    Args:
        path: the file; created if necessary; default: `verdicts.db` in plo's cache folder.

    Raises:
        JudgeError: the file cannot be opened, read or written.
    """

    def __init__(self, path: Path | str | None = None):
        self.path = Path(path).expanduser() if path else caches.CACHES["verdicts"].path()
        caches.hold(self.path)
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Unlike all later statements, enabling the write-ahead log does not wait for other processes.
        with FileLock(f"{self.path}.lock"), self._used():
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.create_function("row_sum", 3, _row_sum, deterministic=True)
            self._db.execute(_TABLE)
            columns = {column[1] for column in self._db.execute("PRAGMA table_info(verdicts)")}
            if "sum" not in columns:
                for statement in _FROM_FIRST_FORM if "cost" in columns else _FROM_SECOND_FORM:
                    self._db.execute(statement)

    def get(self, judge: Judge, questions: Iterable[Question]) -> dict[Question, tuple[Verdict, int]]:
        """Return the cached verdicts, at cost 0, each with its number of answers: above 1 only after unreadable ones."""
        found = {}
        with self._used():
            for question in questions:
                key = key_of(judge, question)
                select = "SELECT p, answer, tries, sum FROM verdicts WHERE key = ?"
                row = self._db.execute(select, (key,)).fetchone()
                if row is not None and row[3] != _row_sum(key, *row[:2]):
                    self._db.execute("DELETE FROM verdicts WHERE key = ? AND sum IS ?", (key, row[3]))
                    logging.getLogger("plo").warning(
                        f"{self.path}: a verdict of {judge.name} is damaged (its sha256 is not that of what was written): "
                        f"removed, to be asked again."
                    )
                elif row is not None:
                    found[question] = Verdict(*row[:2]), row[2]
        return found

    def put(self, judge: Judge, question: Question, verdict: Verdict) -> None:
        """Store a verdict, unless another process already did; unreadable ones are counted until one can be read."""
        key, answer = key_of(judge, question), without_surrogates(verdict.answer)
        with self._used():
            self._db.execute(_PUT, (key, judge.name, verdict.p, answer, _row_sum(key, verdict.p, answer)))

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        """Keep other threads from the file, and name it in errors."""
        try:
            with self._lock:
                yield
        except sqlite3.Error as error:
            raise JudgeError(
                f"The file of verdicts {self.path} cannot be used: {error}. Free space on its disk, or name another file. If "
                f"you remove the file, its verdicts are asked, and paid for, again."
            ) from error
