"""Columns of the first table: the primary metric with its difference, verdict and rank. Texts are plain, without Markdown."""

import math

from plo.leaderboards.board import Leaderboard, Matched, Row
from plo.leaderboards.formatting import UNDEFINED, Column, format_estimate, format_spread

PAIRS = "training pairs"  # title of the one column here whose texts have names in them


def first_columns(board: Leaderboard) -> list[Column]:
    """Return the columns that describe the test of each row, in their order, without the variant's own column."""
    columns: list[Column] = [("seeds", lambda row: str(len(row.runs))), ("tuning", lambda row: row.status)]
    if any(row.pairs for row in board.rows):
        columns.append((PAIRS, lambda row: row.pairs or UNDEFINED))
    name = board.primary_metric
    if name and not board.is_hidden(name):
        columns.append(mean_column(board, name))
        if board.baseline is not None:
            columns += [difference_column(board, name), ("verdict", lambda row: _verdict(board, row))]
        if any(row.rank for row in board.rows):
            columns.append(("rank", _rank))
    if "kl" in board.metrics and name != "kl":
        metric = board.descriptions["kl"]
        columns.append((metric.label, lambda row: format_spread(row.metrics.get("kl"), metric.digits)))
    return columns


def mean_column(board: Leaderboard, name: str) -> Column:
    """Return the column of a metric's mean and 95% interval, or its sd over seeds where items were not recorded."""
    metric = board.descriptions[name]

    def text(row: Row) -> str:
        found, estimate = row.metrics.get(name), row.estimates.get(name)
        if found is None or estimate is None or math.isnan(estimate.low):
            return format_spread(found, metric.digits)
        return format_estimate(found.mean, estimate, metric.digits)

    return f"{label(board, name)} {metric.better}".strip(), text


def spread_column(board: Leaderboard, name: str) -> Column:
    """Return the column of a metric's mean and sd over seeds."""
    metric = board.descriptions[name]
    return f"{label(board, name)} {metric.better}".strip(), lambda row: format_spread(
        row.metrics.get(name), metric.digits
    )


def difference_column(board: Leaderboard, name: str) -> Column:
    """Return the column of a metric's difference from the baseline with its 95% interval."""
    digits = board.descriptions[name].digits

    def text(row: Row) -> str:
        if row is board.baseline:
            return "baseline"
        found = row.differences.get(name)
        return UNDEFINED if found is None else format_estimate(found.mean, found, digits, "+")

    return f"Δ {label(board, name)}", text


def matched_columns(board: Leaderboard, found: Matched) -> tuple[list[Row], list[Column]]:
    """Return the rows that reach the KL of a comparison at matched KL, with the columns of their reward and its difference."""

    def gap(row: Row) -> str:
        if row is board.baseline:
            return "baseline"
        one = found.differences.get(row.name)
        return UNDEFINED if one is None else format_estimate(one.mean, one, 3, "+")

    def reward(row: Row) -> str:
        return format_estimate(found.rewards[row.name].mean, found.rewards[row.name], 3)

    rows = [row for row in board.rows if row.name in found.rewards]
    return rows, [(f"reward at {found.budget:.3g} nats", reward), ("Δ reward", gap)]


def label(board: Leaderboard, name: str) -> str:
    """Return the metric's label; that of an evaluation's metric begins with the title of its section."""
    return board.descriptions[name].label if name in board.sample_metrics else name.replace("_", " ")


def _verdict(board: Leaderboard, row: Row) -> str:
    if row.is_ceiling:
        return "ceiling"
    return row.verdict or ("" if row is board.baseline else UNDEFINED)


def _rank(row: Row) -> str:
    if row.rank:
        return f"{row.rank.rank} [{row.rank.low}, {row.rank.high}]"
    if row.is_ceiling:
        return "ceiling, no rank"
    return UNDEFINED if row.loss == "reference" or row.tuning else "untuned, no rank"
