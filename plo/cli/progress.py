"""Progress bars on a terminal; in a log, where none can be drawn, a line a minute."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from plo.experiment.progress import CellsProgress, Progress
from plo.terminal import line, plain


class TerminalProgress(Progress):
    """Draws bars on a console that is a terminal; they vanish when they are done."""

    def __init__(self, console: Console):
        self.console = console

    def status(self, text: str) -> AbstractContextManager[object]:
        return self.console.status(line(text))

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        with _bars(self.console) as bars:
            task = bars.add_task(plain(label), total=total)
            yield lambda done: bars.update(task, completed=done)

    def cells(self, work: Sequence[tuple[int, int]]) -> CellsProgress:
        return DrawnCells(work, self.console) if self.console.is_terminal else CellsProgress(work)


class DrawnCells(CellsProgress):
    """The progress of cells as a bar in a terminal."""

    def __init__(self, work: Sequence[tuple[int, int]], console: Console):
        super().__init__(work)
        self.bars = _bars(console)
        self.task = self.bars.add_task("cells", total=self.units)

    def __enter__(self) -> "DrawnCells":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def draw(self) -> None:
        text = plain(f"[{min(self.cells_done + 1, len(self.work))}/{len(self.work)}] {self.cell}")
        self.bars.update(self.task, description=text, completed=self.units_done)


def _bars(console: Console) -> Bars:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    return Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
