"""Progress bars on a terminal; in a log, where none can be drawn, a line a minute."""

from collections.abc import Callable, Iterator, Mapping
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
    def bar(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        with Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, transient=True) as bars:
            task = bars.add_task(plain(label), total=total)
            yield lambda done, **changes: bars.update(task, completed=done, **changes)

    @contextmanager
    def cells(self, work: Mapping[str, tuple[int, int]]) -> Iterator[CellsProgress]:
        if not self.console.is_terminal:
            with super().cells(work) as cells:
                yield cells
            return
        cells = CellsProgress(work)
        with self.bar("cells", cells.units) as update:

            def draw() -> None:
                number = min(cells.cells_done + 1, len(work))
                update(cells.units_done, description=plain(f"[{number}/{len(work)}] {cells.cell}"))

            cells.draw = draw
            yield cells
