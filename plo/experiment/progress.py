"""Progress: a bar in a terminal; in a log, where a bar cannot be drawn, a line a minute."""

import threading
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from plo.terminal import plain, say

EVERY = 60.0  # seconds between two lines of a log


def progress_bar(console: Console) -> Progress:
    """Make a progress bar that vanishes when it is done; it is drawn in a terminal alone."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


class CellsProgress:
    """What is done of the cells of a comparison. A context manager; inside it the bar is drawn or the lines are written.

    Args:
        work: units of work and optimiser steps of each cell, in the order in which they run.
    """

    def __init__(self, console: Console, work: Sequence[tuple[int, int]]):
        self.console, self.work = console, work
        self.units, self.steps = (sum(column) for column in zip(*work, strict=True)) if work else (0, 0)
        self.cells_done = self.steps_done = 0
        self.cell = ""
        self.started = time.monotonic()
        self.bar = progress_bar(console)
        self.task = self.bar.add_task("cells", total=self.units)
        self._over = threading.Event()

    def __enter__(self) -> "CellsProgress":
        self.bar.start()
        if not self.console.is_terminal:
            threading.Thread(target=self._write_lines, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self.bar.stop()

    def begin(self, cell: str) -> None:
        """Name the cell that runs now."""
        self.cell = cell
        self.bar.update(self.task, description=plain(f"[{self.cells_done + 1}/{len(self.work)}] {cell}"))

    def end(self) -> None:
        """Count all of the cell's work as done, whatever was reported of it: it may have failed."""
        self.cells_done += 1
        units, steps = zip(*self.work[: self.cells_done], strict=True)
        self.steps_done = sum(steps)
        self.bar.update(self.task, completed=sum(units))

    def advance(self, units: int, steps: int = 0) -> None:
        """Count work that is done."""
        self.steps_done += steps
        self.bar.advance(self.task, units)

    @property
    def units_done(self) -> float:
        return self.bar.tasks[self.task].completed

    def line(self, seconds: float) -> str:
        """Say what is done after so many seconds, and estimate the time left from it."""
        left = "time left not known yet"
        if self.units_done:
            left = f"about {_time(seconds * (self.units - self.units_done) / self.units_done)} left"
        return (
            f"{self.cells_done} of {len(self.work)} cells done, {self.steps_done} of {self.steps} steps; now {self.cell}; "
            f"{_time(seconds)} so far, {left}"
        )

    def _write_lines(self) -> None:
        while not self._over.wait(EVERY):
            say(self.console, self.line(time.monotonic() - self.started))


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
