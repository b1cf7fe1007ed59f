"""Progress of a run: logged once a minute, and drawn by a `Progress` that a caller passes, as the command line does."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

EVERY = 60.0  # seconds between two lines of a log
log = logging.getLogger(__name__)


class CellsProgress:
    """Progress of the cells of a comparison. Inside the context manager a line is logged once a minute.

    Args:
        work: {name of a cell: (units of work, optimiser steps)}.
    """

    draw: Callable[[], None] = staticmethod(lambda: None)  # called after every change

    def __init__(self, work: Mapping[str, tuple[int, int]]):
        self.work = dict(work)
        self.units, self.steps = (sum(column) for column in zip(*work.values(), strict=True)) if work else (0, 0)
        self.cells_done = self.steps_done = self.units_done = 0
        self.cell = ""
        self._ended: set[str] = set()
        self._over = threading.Event()

    def __enter__(self) -> "CellsProgress":
        threading.Thread(target=self._log_lines, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def begin(self, cell: str) -> None:
        """Name the cell that runs now."""
        self.cell = cell
        self.draw()

    def end(self, cell: str) -> None:
        """Count all work of a cell as done, even if not all of it was reported, as the cell may have failed."""
        self._ended |= {cell} & self.work.keys()
        self.cells_done = len(self._ended)
        self.units_done, self.steps_done = (sum(self.work[name][i] for name in self._ended) for i in (0, 1))
        self.draw()

    def advance(self, units: int, steps: int = 0) -> None:
        """Count work that is done."""
        self.units_done += units
        self.steps_done += steps
        self.draw()

    def line(self, seconds: float) -> str:
        """Return a line about what is done after `seconds` seconds, with an estimate of the time that is left."""
        left = "time left not known yet"
        if self.units_done:
            left = f"about {_time(seconds * (self.units / self.units_done - 1))} left"
        return (
            f"{self.cells_done} of {len(self.work)} cells done, {self.steps_done} of {self.steps} steps; now {self.cell}; "
            f"{_time(seconds)} so far, {left}"
        )

    def _log_lines(self) -> None:
        started = time.monotonic()
        while not self._over.wait(EVERY):
            log.info(self.line(time.monotonic() - started))


class Progress:
    """Receives the progress of a run. This class draws nothing; see `plo.cli.progress.TerminalProgress`."""

    def status(self, text: str) -> AbstractContextManager[object]:
        """Show `text` while the block runs."""
        return nullcontext()

    def bar(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show a bar while the block runs. The block calls the function that it receives with the number of items done."""
        return nullcontext(lambda done: None)

    def cells(self, work: Mapping[str, tuple[int, int]]) -> AbstractContextManager[CellsProgress]:
        """Show the progress of cells while the block runs; `work` as in `CellsProgress`."""
        return CellsProgress(work)


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
