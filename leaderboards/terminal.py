"""A leaderboard in a terminal: lines with verdicts and design, a table that fits the width, tuning, then the notes."""

import math

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.columns import first_columns, spread_column
from plo.leaderboards.formatting import Column, setting_column
from plo.leaderboards.headline import design_lines, headline
from plo.leaderboards.tuning import EXPLAINED, tuning_columns
from plo.terminal import plain

GAP = 2  # characters between two columns
NAME = 36  # characters of a variant on one line; a longer name folds
LEAST_NAME = 15  # where the columns of the test need the space


def to_terminal(board: Leaderboard, width: int) -> RenderableType:
    """Return the leaderboard in at most `width` characters per line; a line lists the columns that do not fit."""
    lines = ["Final evaluation point; mean [95%] or mean ± sd over seeds. Δ: difference from the baseline [95%]."]
    if any(
        math.isnan(gap.low)
        for row in board.rows
        for name, gap in row.differences.items()
        if name == board.primary_metric
    ):
        lines.append("Δ without an interval: one prompt, or no two values differ.")
    if all(row.tuning is None for row in board.rows):
        lines.append("Untuned: no rank.")
    parts: list[RenderableType] = [Text(plain(headline(board)), style="bold"), ""]
    parts += [Text(plain(line)) for line in design_lines(board)]
    parts += ["", *_table(_columns(board), board.rows, width, needed=4), *(Text(line) for line in lines)]
    if tuned := [row for row in board.rows if row.tuning]:
        chosen, *scores = tuning_columns(board)
        columns = [_variant(board), *scores, chosen]
        parts += ["", Text("Tuning", style="bold"), *_table(columns, tuned, width, needed=6)]
        parts.append(Text(EXPLAINED))
    if board.notes:
        parts += ["", *(Text(plain(f"- {note}")) for note in board.notes)]
    return Group(*parts)


def _table(columns: list[Column], rows: list[Row], width: int, needed: int = 1) -> list[RenderableType]:
    """Return the table of the columns that fit, an empty line, and a line that lists the others.

    Args:
        needed: number of columns after the first for which the first one, of names, is folded.
    """
    widths = [max(cell_len(plain(text)) for text in (title, *map(one, rows))) for title, one in columns]
    rest = width - sum(widest + GAP for widest in widths[1 : needed + 1])
    widths[0] = min(widths[0], max(LEAST_NAME, min(NAME, rest)))
    used, kept, left_out = 0, list[int](), list[str]()
    for place, widest in enumerate(widths):
        more = min(widest, NAME) + (GAP if kept else 0)
        if len(kept) < 2 or used + more <= width:
            kept.append(place)
            used += more
        else:
            left_out.append(columns[place][0])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place in kept:
        justify, most = ("left", widths[0]) if place == 0 else ("right", NAME)
        table.add_column(Text(columns[place][0]), justify=justify, overflow="fold", max_width=most)
    for row in rows:
        table.add_row(*(Text(plain(columns[place][1](row))) for place in kept))
    return [table, "", *([Text(plain(f"Only in the Markdown file: {', '.join(left_out)}."))] if left_out else [])]


def _variant(board: Leaderboard) -> Column:
    unique = len({board.title(row) for row in board.rows}) == len(board.rows)
    return "variant", board.title if unique else lambda row: row.name


def _columns(board: Leaderboard) -> list[Column]:
    """Return the columns in order of importance: variant, those of the test, KL, then tuning status and the others."""
    seeds, tuning, *test = first_columns(board)
    shown = {board.primary_metric, "kl"}
    rest = [name for name in board.metrics if not board.is_hidden(name) and name not in shown]
    settings = [key for key in board.rows[0].settings if len({row.settings[key] for row in board.rows} - {None}) > 1]
    status = [tuning] if any(row.tuning for row in board.rows) else []
    kl = [test.pop()] if "kl" in board.metrics and board.primary_metric != "kl" else []
    others = [spread_column(board, name) for name in rest]
    return [_variant(board), *test, seeds, *kl, *status, *others, *(setting_column(key) for key in settings)]
