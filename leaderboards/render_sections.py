"""Render as Markdown the sections of a leaderboard: evaluations of a model, variance components."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.columns import difference_column, spread_column
from plo.leaderboards.formatting import (
    UNDEFINED,
    Column,
    escape,
    format_interval,
    format_number,
    markdown_table,
    rows_table,
)
from plo.leaderboards.overall import said_of_components
from plo.leaderboards.sections import Section

UNINFORMATIVE = "uninformative judge"


def section_markdown(one: Section, board: Leaderboard, short: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """Return an evaluation's section: the judge's card, notes, and two tables.

    The first table has the metrics with a direction, with intervals and differences from the baseline but without tests; the second has the
    others, such as lengths. Where no metric has a direction, the first table has all of them.
    """
    parts = [f"## {escape(one.title)}"]
    for judge in one.judges:
        title = f"Judge {escape(judge['judge'])}" + (f", prompt {escape(judge['prompt'])}:" if judge["prompt"] else ":")
        card = [*(judge.get("card") or [_no_card(judge)]), *judge.get("measured", ())]
        parts.append("\n".join([title, "", *(f"- {escape(line, 400)}" for line in card)]))
    if one.notes:
        parts.append("\n".join(["Notes:", "", *(f"- {escape(note, 1000)}" for note in one.notes)]))
    evaluated = [row for row in rows if any(name in row.metrics for name in one.metrics)]
    main = [name for name in one.metrics if one.describe(name).better] or one.metrics
    main.sort(key=lambda name: not one.is_judged(name))  # verdicts first
    columns = [column for name in main for column in _columns(one, name, board, True)]
    parts.append(rows_table([*short, *columns], evaluated))
    if secondary := [name for name in one.metrics if name not in main]:
        columns = [column for name in secondary for column in _columns(one, name, board, False)]
        parts.append(rows_table([*short, *columns], evaluated))
    return parts + [part for name in main for part in _along(one, name, board, evaluated)]


def _along(one: Section, name: str, board: Leaderboard, rows: Sequence[Row]) -> list[str]:
    """Return the table of a judged metric along training, means over seeds; empty where no training has two points."""
    trained: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        curves = [one.curves.get(name, {}).get(run, {}) for run in row.runs.values()]
        if one.is_judged(name) and not one.is_hidden(name) and max(map(len, curves), default=0) > 1:
            shares = sorted({share for curve in curves for share in curve})
            trained[board.title(row)] = {share: [c[share] for c in curves if share in c] for share in shares}
    if not trained:
        return []
    shares = sorted({share for curve in trained.values() for share in curve})
    metric = board.descriptions[name]
    body = [
        [escape(title), *(format_number(fmean(curve[s]), metric.digits) if s in curve else UNDEFINED for s in shares)]
        for title, curve in trained.items()
    ]
    said = f"{escape(metric.label)} by share of training, means over seeds; the last column is that of the table above."
    return [said, markdown_table(["variant", *(f"{share:.0%}" for share in shares)], body)]


def _no_card(judge: Mapping[str, str]) -> str:
    if judge["judge"].startswith("gold:"):
        return "a reward computed from the text, known exactly; it says nothing about other qualities"
    prompt = f" --template {judge['prompt']}" if judge["prompt"] else ""
    return f"no card: measure its agreement with gold labels: plo judge-check '{judge['given']}' PAIRS{prompt}"


def _columns(one: Section, name: str, board: Leaderboard, inference: bool) -> list[Column]:
    """Return a metric's columns; with `inference`, those of its interval and its difference too."""
    metric, text = board.descriptions[name], spread_column(board, name)[1]
    title = escape(f"{metric.label} {metric.better}".strip())
    if one.is_hidden(name):
        return [(title, lambda row: UNINFORMATIVE if name in row.metrics else UNDEFINED)]
    if not inference:
        return [(title, text)]

    def mean(row: Row) -> str:
        if (shown := text(row)) == UNDEFINED or name not in row.estimates:
            return shown
        return f"{shown} {format_interval(row.estimates[name], metric.digits)}"

    columns: list[Column] = [(f"{title} [95%]", mean)]
    if any(name in row.differences for row in board.rows):
        columns.append((f"Δ {escape(metric.label)} [95%]", difference_column(board, name)[1]))
    return columns


def components_markdown(board: Leaderboard) -> list[str]:
    """Return the section on the variance components of the primary metric."""
    if board.components is None:
        return []
    found = {str(name): float(value) for name, value in board.components.dropna().items()}
    total = sum(found.values())
    body = [
        [
            name.replace(" x ", " × "),
            f"{value:.3g}",
            f"{math.sqrt(value):.3g}",
            f"{value / total:.0%}" if total else UNDEFINED,
        ]
        for name, value in found.items()
    ]
    return [
        "## Variance components",
        f"Analysis of variance of {escape(board.primary_metric)} over the prompts and seeds that all variants have. A "
        f"negative estimate is shown as 0. {said_of_components(found)}",
        markdown_table(["component", "variance", "sd", "share"], body),
    ]
