"""Which rows stand out in the figures, with one colour, marker and dash for each in all of them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.page.drawing import COLOURS, DASHES, FAINT, MARKERS, SERIES
from plo.leaderboards.page.text import label


class Look(NamedTuple):
    """Colour, marker and dash of a row's lines."""

    colour: str
    marker: str
    dash: Any


SHORT = 16  # characters of names that fit three in a line
OTHER = Look(FAINT, "o", "-")


def score(board: Leaderboard, row: Row) -> float:
    """Return the row's mean of the primary metric, higher for a better row; -inf where there is none."""
    name = board.primary_metric
    if name is None or name not in row.metrics or math.isnan(row.metrics[name].mean):
        return -math.inf
    return row.metrics[name].mean * (-1 if board.descriptions[name].better == "↓" else 1)


def choose_looks(board: Leaderboard) -> dict[str, Look]:
    """Return {row's name: its look} for the baseline and the best rows, as many as colours can be told apart.

    The untrained reference is no line of its own: it is the point at which all lines begin.
    """
    rows = [row for row in board.rows if row.runs and row.loss != "reference"]
    rows.sort(key=lambda row: (row is not board.baseline, -score(board, row), row.name))
    looks = zip(rows, COLOURS, MARKERS, strict=False)
    return {row.name: Look(colour, marker, DASHES[i % len(DASHES)]) for i, (row, colour, marker) in enumerate(looks)}


def add_legend(drawn: Canvas, looks: Mapping[str, Look], names: Mapping[str, str], shown: list[str]) -> str:
    """Draw the legend of the rows that are shown, below the figure, and return what the caption says about the others."""
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dash, label=label(names[name]))
        for name, look in looks.items() if name in shown
    ]  # fmt: skip
    if others := [name for name in shown if name not in looks]:
        handles.append(Line2D([], [], color=FAINT, linewidth=0.7, label=f"{len(others)} other variants"))
    longest = max(len(str(handle.get_label())) for handle in handles)
    drawn.legend(handles=handles, loc="outside lower center", ncols=3 if longest <= SHORT else 2, columnspacing=1.2)
    return f" Coloured: the baseline and the {SERIES - 1} best variants." if others else ""
