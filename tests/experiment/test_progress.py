"""What a log that is no terminal hears of a comparison: a line now and then, with cells, steps and time left."""

import io
import time

import pytest

from plo.cli.progress import TerminalProgress
from plo.experiment import progress
from plo.experiment.progress import CellsProgress
from plo.terminal import Terminal

WORK = {
    "reference seed 0": (10, 0),
    "dpo seed 0": (34, 24),
    "ipo seed 0": (34, 24),
}  # a reference and two trained cells


def test_the_line_by_hand():
    """34 units of 78 took 17 minutes, so the other 44 take 22."""
    cells = CellsProgress(WORK)
    assert cells.line(30) == ("0 of 3 cells done, 0 of 48 steps; now ; 0 min so far, time left not known yet")
    cells.begin("reference seed 0")
    cells.advance(10)
    cells.end("reference seed 0")
    cells.begin("dpo seed 0")
    cells.advance(24, 24)
    assert cells.line(17 * 60) == (
        "1 of 3 cells done, 24 of 48 steps; now dpo seed 0; 17 min so far, about 22 min left"
    )
    cells.end("dpo seed 0")  # its evaluation failed: done all the same
    assert (
        cells.line(44 * 3600)
        == "2 of 3 cells done, 24 of 48 steps; now dpo seed 0; 44 h 0 min so far, about 34 h 0 min left"
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_are_for_logs_and_bars_for_terminals(terminal, monkeypatch, caplog):
    monkeypatch.setattr(progress, "EVERY", 0.02)
    caplog.set_level("INFO", "plo")
    file = io.StringIO()
    drawn = TerminalProgress(Terminal(file=file, force_terminal=terminal, width=200))
    with drawn.cells(WORK) as cells:
        cells.begin("dpo [red] seed 0")
        time.sleep(0.3)
    assert ("0 of 3 cells done, 0 of 48 steps; now dpo [red] seed 0" in caplog.text) is not terminal
    assert ("[1/3] dpo [red] seed 0" in file.getvalue()) is terminal
    logged = len(caplog.records)
    time.sleep(0.1)
    assert len(caplog.records) == logged, "nothing comes afterwards"


def test_nothing_to_do():
    with CellsProgress({}) as cells:
        assert cells.units == cells.steps == 0
