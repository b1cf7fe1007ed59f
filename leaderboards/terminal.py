"""A leaderboard in a terminal: one line that says what won, a table that fits the width, then the notes."""

import math
from collections.abc import Callable

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.formatting import format_number, format_setting, format_spread
from plo.terminal import plain

Column = tuple[str, Callable[[Row], str]]
GAP = 2  # characters between two columns
NAME = 36  # characters of a variant on one line; a longer name folds


def to_terminal(board: Leaderboard, width: int) -> RenderableType:
    """The leaderboard in at most `width` characters a line; what does not fit is in the Markdown file, and said to be."""
    columns, left_out = _fitting(_columns(board), board.rows, width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, (title, _) in enumerate(columns):
        table.add_column(Text(title), justify="left" if place == 0 else "right", overflow="fold", max_width=NAME)
    for row in board.rows:
        table.add_row(*(Text(plain(show(row))) for _, show in columns))
    parts: list[RenderableType] = [Text(plain(headline(board)), style="bold"), "", table]
    about = [f"Final evaluation point, mean ± sd over seeds. {_about_difference(board)}Untuned: no rank."]
    if left_out:
        about.append(f"In the Markdown file as well: {', '.join(left_out)}.")
    parts += ["", *(Text(plain(line)) for line in about)]
    if board.notes:
        parts += ["", *(Text(plain(f"- {note}")) for note in board.notes)]
    return Group(*parts)


def headline(board: Leaderboard) -> str:
    """Name the variants that are better than the baseline in the primary metric, or say that none is."""
    name, base = board.primary_metric, board.baseline
    if name is None or base is None:
        lacking = "metric of which a direction is better" if name is None else "baseline"
        return f"Nothing won: the runs have no {lacking}, so nothing is compared."
    how, title = board.descriptions[name], board.title(base)
    if board.is_hidden(name):
        return f"Nothing won: {how.label} is of a judge that agrees with gold labels no better than chance."
    compared = [row for row in board.rows if name in row.differences]
    if not compared:
        return f"Nothing won: no variant was compared with {title} in {how.label}."
    sign = -1 if how.better == "↓" else 1
    resolved = [row for row in compared if row.differences[name].resolved]
    better = [row for row in resolved if sign * row.differences[name].mean > 0]
    worse = [row for row in resolved if sign * row.differences[name].mean < 0]
    shown = ", ".join(_gain(board, row, name) for row in sorted(better, key=lambda r: -sign * r.differences[name].mean))
    behind = f" Worse: {', '.join(_gain(board, row, name) for row in worse)}." if worse else ""
    if better:
        return f"Better than {title} in {how.label}: {shown}.{behind}"
    of = "1 variant" if len(compared) == 1 else f"{len(compared)} variants"
    return f"Nothing won: of {of} none is resolved as better than {title} in {how.label}.{behind}"


def _gain(board: Leaderboard, row: Row, name: str) -> str:
    return f"{board.title(row)} ({format_number(row.differences[name].mean, board.descriptions[name].digits, '+')})"


def _about_difference(board: Leaderboard) -> str:
    if board.primary_metric is None or board.baseline is None:
        return ""
    gaps = [row.differences[board.primary_metric] for row in board.rows if board.primary_metric in row.differences]
    undefined = "[-, -]: one prompt, or no two values that differ. " if any(math.isnan(gap.low) for gap in gaps) else ""
    return (
        f"Δ: difference to {board.title(board.baseline)}, [95%]; p after Holm; unresolved: run more seeds or prompts. "
        f"{undefined}"
    )


def _columns(board: Leaderboard) -> list[Column]:
    """Columns in order of importance: who, the primary metric with its difference, then the others."""
    names = [("variant", board.title)] if len({board.title(row) for row in board.rows}) == len(board.rows) else []
    columns: list[Column] = names or [("variant", lambda row: row.name)]
    rest = [name for name in board.metrics if not board.is_hidden(name) and name != board.primary_metric]
    for name in [board.primary_metric, *rest] if board.primary_metric else rest:
        columns.append(_mean(board, name))
        if name == board.primary_metric:
            columns += _difference(board, name)
            columns.append(("seeds", lambda row: str(len(row.runs))))
    settings = [key for key in board.rows[0].settings if len({row.settings[key] for row in board.rows} - {None}) > 1]
    return columns + [(key, lambda row, key=key: format_setting(row.settings[key])) for key in settings]


def _mean(board: Leaderboard, name: str) -> Column:
    how = board.descriptions[name]
    label = how.label if name in board.sample_metrics else name.replace("_", " ")
    return f"{label} {how.better}".strip(), lambda row: format_spread(row.metrics.get(name), how.digits)


def _difference(board: Leaderboard, name: str) -> list[Column]:
    if not any(name in row.differences for row in board.rows):
        return []
    digits = board.descriptions[name].digits

    def gap(row: Row) -> str:
        found = row.differences.get(name)
        if found is None:
            return "baseline" if row is board.baseline else "-"
        low, high = format_number(found.low, digits, "+"), format_number(found.high, digits, "+")
        return f"{format_number(found.mean, digits, '+')} [{low}, {high}]"

    def verdict(row: Row) -> str:
        found = row.differences.get(name)
        if found is None:
            return ""
        p = "< .001" if found.p_holm < 0.001 else format_number(found.p_holm, 3)
        return p if found.resolved else f"{p} unresolved"

    return [("Δ [95%]", gap), ("p", verdict)]


def _fitting(columns: list[Column], rows: list[Row], width: int) -> tuple[list[Column], list[str]]:
    """The columns that fit side by side, and the titles of those that do not; the first two are always shown."""
    used, kept, left_out = 0, [], []
    for title, show in columns:
        widest = max(cell_len(plain(text)) for text in (title, *map(show, rows)))
        needed = min(widest, NAME) + (GAP if kept else 0)
        if len(kept) < 2 or used + needed <= width:
            kept.append((title, show))
            used += needed
        else:
            left_out.append(title)
    return kept, left_out
