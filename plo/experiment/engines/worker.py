"""A worker: a process that opens a comparison once and does the units that it is given.

Started as `python -m plo.experiment.engines.worker` it reads JSON lines from its standard input, a `Job` and then units,
and writes JSON lines: messages of its log, progress, and outcomes.
"""

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import IO, Any

from plo import interrupt
from plo.config import Experiment
from plo.errors import PloError, one_line
from plo.experiment.runner import Advance
from plo.experiment.session import Session
from plo.experiment.units import Outcome, Unit, fatal_fault
from plo.faults import sentence
from plo.quiet import silence_libraries

log = logging.getLogger("plo")


@dataclass(frozen=True)
class Job:
    """A comparison as a worker receives it: settings, recorded run and working folder.

    Attributes:
        experiment: settings of the experiment, as JSON.
        parent: run id of the recorded comparison.
        folder: working folder, to which paths in the experiment are relative.
        engine: name of the engine.
    """

    experiment: str
    parent: str
    folder: str
    engine: str = "local"

    @classmethod
    def of(cls, session: Session) -> "Job":
        """Return the job of a comparison that this process has opened and recorded."""
        return cls(json.dumps(session.experiment.model_dump(mode="json")), session.parent, os.getcwd(), session.engine)


@lru_cache(maxsize=1)
def _opened(job: Job) -> Session:
    silence_libraries()
    if not os.path.isdir(job.folder):
        raise PloError(
            f"The folder {job.folder}, in which the comparison was started, does not exist on this machine "
            f"({os.uname().nodename}): start workers where the same folders are mounted, or use absolute paths."
        )
    os.chdir(job.folder)
    level = log.level
    log.setLevel(logging.WARNING)  # the process that started the comparison has described the data
    try:
        experiment = Experiment.of(json.loads(job.experiment), "The experiment of the comparison")
        session = Session.open(experiment, patient=True)
    finally:
        log.setLevel(level)
    session.engine = job.engine
    session.join(job.parent)
    return session


def do(job: Job, unit: Unit, advance: Advance = lambda units, steps=0: None) -> Outcome:
    """Do a unit of a job in this process, which keeps what all units of the job share."""
    try:
        return _opened(job).attempt(unit, advance)
    except Exception as error:
        interrupt.check()
        if not isinstance(error, PloError) and sentence(error) is None:
            log.exception("failed %s", unit.name)
        fault = fatal_fault(error)
        return Outcome("failed", fault or sentence(error) or one_line(error), fatal=fault is not None)


class LineHandler(logging.Handler):
    """Hands log records to a function, as (level, message)."""

    def __init__(self, write: Callable[[int, str], None]):
        super().__init__()
        self.write = write

    def emit(self, record: logging.LogRecord) -> None:
        self.write(record.levelno, self.format(record))


def main() -> None:
    """Do the units that come on standard input until it is closed, or until a signal asks this process to end."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is no message
    lock = threading.Lock()

    def send(**message: Any) -> None:
        with lock:
            out.write(f"{json.dumps(message)}\n")

    log.setLevel(logging.INFO)
    log.addHandler(LineHandler(lambda level, text: send(log=[level, text])))
    lines = _lines(sys.stdin)
    with interrupt.listening(quiet=True):
        try:
            job = Job(**json.loads(lines.get()))
            while True:
                with interrupt.awaiting("waiting for work"):
                    line = lines.get()
                unit = Unit.from_dict(json.loads(line))
                outcome = do(job, unit, lambda units, steps=0: send(advance=[units, steps]))
                send(outcome=asdict(outcome))
        except interrupt.Interrupted:
            send(interrupted=True)


def _lines(stream: IO[str]) -> "queue.SimpleQueue[str]":
    """Return a queue of the lines of a stream. The process ends with the stream, as its parent has ended then."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        os._exit(1)  # what was under way goes on from its checkpoint

    threading.Thread(target=read, daemon=True, name="plo-stdin").start()
    return lines


def relog(level: int, text: str) -> None:
    """Log a message of a worker in this process."""
    log.log(level, "%s", text)


if __name__ == "__main__":
    main()
