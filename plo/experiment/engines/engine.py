"""The protocol of an engine, and the loop that gives it every unit as soon as the units it needs are finished."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Protocol

from plo import interrupt
from plo.errors import PloError
from plo.experiment.progress import CellsProgress
from plo.experiment.runner import Advance
from plo.experiment.session import Session
from plo.experiment.units import Outcome, Schedule, Unit

LOSSES = 3  # of the process of one unit, after which the unit counts as failed
RETRY_SECONDS = 2.0  # between two attempts at units that other processes have
SAY_SECONDS = 60.0  # between two lines of the log about them
log = logging.getLogger(__name__)


class EngineError(PloError, RuntimeError):
    """Raised for an engine that cannot be used or go on. The message names the remedy."""


class Engine(Protocol):
    """Runs units in processes.

    Attributes:
        name: name in records.
        several: whether units run at the same time, so that stages are units of their own.
    """

    name: str
    several: bool

    def room(self) -> bool:
        """Return whether a further unit can be handed over now."""
        ...

    def submit(self, session: Session, unit: Unit, advance: Advance) -> None:
        """Hand a unit over. `advance` receives its progress, as far as the engine learns of it."""
        ...

    def collect(self, seconds: float) -> list[tuple[Unit, Outcome | None]]:
        """Return the units that have ended, each with its outcome, or None if its process was lost.

        Args:
            seconds: maximum time to wait for one.
        """
        ...

    def close(self, interrupted: bool = False) -> None:
        """End the processes; if `interrupted`, once they have written their checkpoints."""
        ...


def run_units(
    engine: Engine, session: Session, units: Sequence[Unit], finished: Sequence[str], progress: CellsProgress
) -> dict[str, str]:
    """Run units, each after those it needs, and return the errors of failed ones by name.

    Units that another process of the store is doing are waited for. A unit whose process is lost is run again.

    Args:
        finished: keys of units that are finished already.

    Raises:
        EngineError: a unit failed for a reason for which all others would fail too.
    """
    schedule, losses, running, told = Schedule(units, finished), dict[str, int](), 0, -math.inf
    while schedule.left:
        for unit in schedule.ready():
            if not engine.room():
                break
            schedule.begin(unit)
            progress.begin(unit.name)
            engine.submit(session, unit, progress.advance)
            running += 1
        for unit, outcome in engine.collect(RETRY_SECONDS) if running else ():
            running -= 1
            if outcome is None:
                losses[unit.key] = losses.get(unit.key, 0) + 1
                if losses[unit.key] < LOSSES:
                    log.warning("The process that did %s was lost: it is run again.", unit.name)
                    schedule.again(unit)
                    continue
                outcome = Outcome("failed", f"its process was lost {LOSSES} times (killed, or out of memory)")
                log.error("failed %s: %s", unit.name, outcome.reason)
            if outcome.fatal:
                raise EngineError(f"{unit.name}: {outcome.reason}")
            schedule.end(unit, outcome)
            if outcome.state != "held":
                progress.end(unit.name)
        if schedule.left and not schedule.ready():
            if not running:
                if time.monotonic() - told >= SAY_SECONDS:
                    told = time.monotonic()
                    log.info("waiting for what other processes are doing: %s", ", ".join(schedule.held[:5]))
                with interrupt.awaiting("waiting for what other processes are doing"):
                    time.sleep(RETRY_SECONDS)
            schedule.retry(session.is_free)
    return schedule.failed
