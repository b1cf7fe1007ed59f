"""A leaderboard in a terminal: one line with the verdict, a table that fits the width, then the notes."""

import math

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.formatting import Column, format_interval, format_number, format_spread, setting_column
from plo.terminal import plain

GAP = 2  # characters between two columns
NAME = 36  # characters of a variant on one line; a longer name folds


def to_terminal(board: Leaderboard, width: int) -> RenderableType:
    """Return the leaderboard in at most `width` characters per line; a line lists the columns that do not fit."""
    columns, left_out = _fit(_columns(board), board.rows, width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, (title, _) in enumerate(columns):
        table.add_column(Text(title), justify="left" if place == 0 else "right", overflow="fold", max_width=NAME)
    for row in board.rows:
        table.add_row(*(Text(plain(text(row))) for _, text in columns))
    lines = [f"Final evaluation point; mean ± sd over seeds. {_explain_difference(board)}Untuned: no rank."]
    if left_out:
        lines.append(f"Only in the Markdown file: {', '.join(left_out)}.")
    parts: list[RenderableType] = [Text(plain(headline(board)), style="bold"), "", table, ""]
    parts += [Text(plain(line)) for line in lines]
    if board.notes:
        parts += ["", *(Text(plain(f"- {note}")) for note in board.notes)]
    return Group(*parts)


def headline(board: Leaderboard) -> str:
    """Return a sentence that names the variants better than the baseline in the primary metric, or says there is none."""
    name, base = board.primary_metric, board.baseline
    if name is None or base is None:
        lacking = "metric with a direction" if name is None else "baseline"
        return f"No winner: the runs have no {lacking}, so nothing is compared."
    metric, title = board.descriptions[name], board.title(base)
    if board.is_hidden(name):
        return f"No winner: {metric.label} comes from a judge that agrees with gold labels no better than chance."
    compared = [row for row in board.rows if name in row.differences]
    if not compared:
        return f"No winner: no variant was compared with {title} in {metric.label}."
    sign = -1 if metric.better == "↓" else 1
    resolved = [row for row in compared if row.differences[name].resolved]
    better = [row for row in resolved if sign * row.differences[name].mean > 0]
    worse = [row for row in resolved if sign * row.differences[name].mean < 0]

    def gains(rows: list[Row]) -> str:
        return ", ".join(
            f"{board.title(row)} ({format_number(row.differences[name].mean, metric.digits, '+')})" for row in rows
        )

    behind = f" Worse: {gains(worse)}." if worse else ""
    if better:
        best_first = sorted(better, key=lambda row: -sign * row.differences[name].mean)
        return f"Better than {title} in {metric.label}: {gains(best_first)}.{behind}"
    compared_variants = "the only variant is not" if len(compared) == 1 else f"none of {len(compared)} variants is"
    return f"No winner: {compared_variants} resolved as better than {title} in {metric.label}.{behind}"


def _explain_difference(board: Leaderboard) -> str:
    if board.primary_metric is None or board.baseline is None:
        return ""
    gaps = [row.differences[board.primary_metric] for row in board.rows if board.primary_metric in row.differences]
    undefined = "[-, -]: one prompt, or no two values differ. " if any(math.isnan(gap.low) for gap in gaps) else ""
    return (
        f"Δ: difference from {board.title(board.baseline)} [95%]; p: Holm-adjusted; unresolved: run more seeds or prompts. "
        f"{undefined}"
    )


def _columns(board: Leaderboard) -> list[Column]:
    """Return the columns in order of importance: variant, the primary metric with its difference, then the others."""
    unique = len({board.title(row) for row in board.rows}) == len(board.rows)
    columns: list[Column] = [("variant", board.title if unique else lambda row: row.name)]
    rest = [name for name in board.metrics if not board.is_hidden(name) and name != board.primary_metric]
    for name in [board.primary_metric, *rest] if board.primary_metric else rest:
        columns.append(_mean(board, name))
        if name == board.primary_metric:
            columns += _difference(board, name)
            columns.append(("seeds", lambda row: str(len(row.runs))))
    settings = [key for key in board.rows[0].settings if len({row.settings[key] for row in board.rows} - {None}) > 1]
    return columns + [setting_column(key) for key in settings]


def _mean(board: Leaderboard, name: str) -> Column:
    metric = board.descriptions[name]
    label = metric.label if name in board.sample_metrics else name.replace("_", " ")
    return f"{label} {metric.better}".strip(), lambda row: format_spread(row.metrics.get(name), metric.digits)


def _difference(board: Leaderboard, name: str) -> list[Column]:
    if not any(name in row.differences for row in board.rows):
        return []
    digits = board.descriptions[name].digits

    def gap(row: Row) -> str:
        found = row.differences.get(name)
        if found is None:
            return "baseline" if row is board.baseline else "-"
        return f"{format_number(found.mean, digits, '+')} {format_interval(found, digits, '+')}"

    def verdict(row: Row) -> str:
        found = row.differences.get(name)
        if found is None:
            return ""
        p = "< .001" if found.p_holm < 0.001 else format_number(found.p_holm, 3)
        return p if found.resolved else f"{p} unresolved"

    return [("Δ [95%]", gap), ("p", verdict)]


def _fit(columns: list[Column], rows: list[Row], width: int) -> tuple[list[Column], list[str]]:
    """Return the columns that fit side by side, the first two in any case, and the titles of the others."""
    used, kept, left_out = 0, [], []
    for title, text in columns:
        widest = max(cell_len(plain(cell)) for cell in (title, *map(text, rows)))
        needed = min(widest, NAME) + (GAP if kept else 0)
        if len(kept) < 2 or used + needed <= width:
            kept.append((title, text))
            used += needed
        else:
            left_out.append(title)
    return kept, left_out
