"""Tables of the page: the main one of few columns, and those with the other numbers."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from plo.leaderboards.board import Leaderboard, Matched, Row
from plo.leaderboards.columns import difference_column, matched_columns, mean_column, spread_column
from plo.leaderboards.columns import label as metric_label
from plo.leaderboards.formatting import UNDEFINED, Column, format_count, format_number, format_spread
from plo.leaderboards.overall import said_of_components
from plo.leaderboards.page.text import NAME, untuned, visible
from plo.leaderboards.tuning import EXPLAINED, tuning_columns
from plo.statistics import Estimate
from plo.tracking import RecordedCell

SIGNS = {"better": "▲", "worse": "▼", "equivalent": "≈", "undecided": "?"}


class Cell(NamedTuple):
    """A cell: its text, what the column sorts by (a number, or else the text), and a second, smaller line."""

    text: str
    key: float | None = None
    small: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page. The first cell of each line is its heading."""

    key: str
    caption: str
    titles: Sequence[str]
    lines: Sequence[Sequence[Cell]]


def main_table(board: Leaderboard, names: Mapping[str, str]) -> Table:
    """Return the table of the primary metric: score, difference, verdict, rank, KL, cost."""
    by_run, name = {cell.run_id: cell for cell in board.cells}, board.primary_metric
    rows = [row for row in board.rows if row.runs]
    columns: list[tuple[str, Callable[[Row], Cell]]] = [("variant", lambda row: _variant(row, names))]
    if name and not board.is_hidden(name):
        columns += _tested(board, name)
    if "kl" in board.metrics and name != "kl":
        title, text = spread_column(board, "kl")
        columns.append((f"{title}, nats", lambda row: Cell(text(row), _mean(row, "kl"))))
    seconds = {row.name: _seconds([by_run[run] for run in row.runs.values()]) for row in rows}
    if any(map(math.isfinite, seconds.values())):
        columns.append(
            ("cost, s per seed", lambda row: Cell(format_number(seconds[row.name], 1), _finite(seconds[row.name])))
        )
    columns.append(("seeds", lambda row: Cell(str(len(row.runs)), len(row.runs))))
    lines = [[cell(row) for _, cell in columns] for row in rows]
    return Table("main", _explained(board, rows), [title for title, _ in columns], lines)


def more_tables(board: Leaderboard, names: Mapping[str, str]) -> list[tuple[str, list[Table]]]:
    """Return (heading, tables) of the secondary metrics, evaluations, tuning, settings and variance components."""
    parts: list[tuple[str, list[Table]]] = []
    secondary = [name for name in board.sample_metrics if name != board.primary_metric]
    if secondary:
        parts.append(("Secondary metrics", _metrics(board, names, "secondary", secondary)))
    for place, section in enumerate(board.sections):
        shown = [name for name in section.metrics if not section.is_hidden(name)]
        parts.append((f"Evaluation: {visible(section.title, NAME)}", _metrics(board, names, f"section-{place}", shown)))
    if tuned := [row for row in board.rows if row.tuning]:
        parts.append(("Tuning", [_table("tuned", EXPLAINED, tuning_columns(board), tuned, names)]))
    keys = [key for key in board.rows[0].settings if any(row.settings[key] for row in board.rows)]
    if keys:
        caption = "Settings in which the variants differ."
        columns = [(key, lambda row, key=key: row.settings[key] or UNDEFINED) for key in keys]
        parts.append(("Settings", [_table("settings", caption, columns, board.rows, names)]))
    if board.matched is not None:
        parts.append(("Reward at matched KL", [_matched(board, board.matched, names)]))
    if (fixed := board.fixed_length) is not None:
        column: Column = (
            f"distinct-{fixed.n} of {fixed.words} words ↑",
            lambda row: format_spread(fixed.distinct[row.name], 3),
        )
        caption = (
            f"Unique / all {fixed.n}-grams over each seed's samples, cut to their first {fixed.words} words; mean ± standard deviation "
            f"over seeds, of the {fixed.prompts} prompts whose samples are as long in every row and seed."
        )
        rows = [row for row in board.rows if row.name in fixed.distinct]
        parts.append(("Diversity at one length", [_table("fixed-length", caption, [column], rows, names)]))
    if board.components is not None:
        parts.append(("Variance components", [_components(board, board.components)]))
    return parts


def _tested(board: Leaderboard, name: str) -> list[tuple[str, Callable[[Row], Cell]]]:
    """Return the columns of the primary metric: score, and where there is a test, difference, verdict and rank."""
    (title, mean), (gap_title, gap) = mean_column(board, name), difference_column(board, name)
    found: list[tuple[str, Callable[[Row], Cell]]] = [(title, lambda row: Cell(mean(row), _mean(row, name)))]
    if board.baseline is not None:
        found.append(
            (
                gap_title,
                lambda row: Cell(
                    gap(row),
                    _finite(row.differences[name].mean)
                    if name in row.differences
                    else 0.0
                    if row is board.baseline
                    else None,
                ),
            )
        )
        found.append(("verdict", lambda row: _verdict(board, row)))
    if any(row.rank for row in board.rows):
        found.append(("rank", _rank))
    return found


def _variant(row: Row, names: Mapping[str, str]) -> Cell:
    short, point = names[row.name], (row.tuning or {}).get("point") or {}
    if point and short in (row.loss, untuned(row)):
        chosen = ", ".join(f"{name.removeprefix('train.')}={value:.3g}" for name, value in point.items())
        said = f"tuned: {chosen}"
    else:
        said = row.variant.removeprefix(short).strip() or ("as given" if row.tuning and not point else "")
    pairs = f"pairs: {row.pairs}" if row.pairs else ""
    return Cell(visible(short, 2 * NAME), small="; ".join(visible(one, 2 * NAME) for one in (said, pairs) if one))


def _verdict(board: Leaderboard, row: Row) -> Cell:
    order = [*SIGNS]
    if row.verdict:
        return Cell(f"{SIGNS[row.verdict]} {row.verdict}", order.index(row.verdict), kind=row.verdict)
    said = "baseline" if row is board.baseline else "ceiling" if row.is_ceiling else "not tested"
    return Cell(said, len(order))


def _rank(row: Row) -> Cell:
    if row.rank:
        return Cell(f"{row.rank.rank} [{row.rank.low}, {row.rank.high}]", row.rank.rank)
    return Cell(UNDEFINED if row.tuning or row.loss == "reference" or row.is_ceiling else "untuned")


def _mean(row: Row, name: str) -> float | None:
    return _finite(row.metrics[name].mean) if name in row.metrics else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _seconds(cells: Iterable[RecordedCell]) -> float:
    """Return the mean seconds of the cells; NaN where they were not recorded."""
    found = [float(cell.tags["plo.seconds"]) for cell in cells if "plo.seconds" in cell.tags]
    return sum(found) / len(found) if found else math.nan


def _explained(board: Leaderboard, rows: Sequence[Row]) -> str:
    name = board.primary_metric
    parts = ["Final evaluation point."]
    if name and not board.is_hidden(name):
        metric, what = board.descriptions[name], metric_label(board, name)
        parts.append(f"{what}: {visible(metric.meaning, 400)}.")
        found = [row.estimates[name] for row in rows if name in row.estimates]
        if found:
            parts.append(
                f"Brackets: 95% interval for new prompts and new seeds{_n(found)}; with one seed, for new prompts alone."
            )
        if board.baseline is not None and any(name in row.differences for row in rows):
            parts.append(
                f"Δ: difference from {visible(board.title(board.baseline), NAME)}, paired by prompt and seed; where one has more seeds, "
                "it is not just the difference of the two means."
            )
        if any(row.is_ceiling for row in rows):
            parts.append("Ceiling: it reads the truth of the task, which no method can; neither tested nor ranked.")
        if any(row.rank for row in rows):
            parts.append("Rank: in brackets the ranks that tests of all pairs leave open, Holm-corrected.")
    parts.append("±: standard deviation over seeds. Cost: wall seconds of training and evaluation, mean over seeds.")
    return " ".join(parts)


def _metrics(board: Leaderboard, names: Mapping[str, str], key: str, metrics: Sequence[str]) -> list[Table]:
    """Return a table of means and, where there are any, one of differences from the baseline."""
    rows = [row for row in board.rows if any(name in row.metrics for name in metrics)]
    if not rows:
        return []
    size = _n(row.estimates[name] for row in rows for name in metrics if name in row.estimates)
    caption = f"Means [95% interval for new prompts and new seeds{size}], or ± standard deviation over seeds. Nothing is tested."
    found = [_table(key, caption, [_short(board, name, mean_column(board, name)) for name in metrics], rows, names)]
    differing = [name for name in metrics if any(name in row.differences for row in rows)]
    if board.baseline and differing:
        columns = [_short(board, name, difference_column(board, name)) for name in differing]
        size = _n(row.differences[name] for row in rows for name in differing if name in row.differences)
        caption = (
            f"Differences from {visible(names[board.baseline.name], NAME)} with 95% intervals for new prompts and new seeds{size}. "
            "Nothing is tested: of twenty such intervals about one misses the truth."
        )
        found.append(
            _table(f"{key}-differences", caption, columns, [row for row in rows if row is not board.baseline], names)
        )
    return found


def _short(board: Leaderboard, name: str, column: Column) -> Column:
    """Return the column under the metric's own label, without the title of its evaluation, which is the heading."""
    metric, gap = board.descriptions[name], "Δ " if column[0].startswith("Δ") else ""
    return f"{gap}{metric.label} {metric.better}".strip(), column[1]


def _table(key: str, caption: str, columns: Iterable[Column], rows: Sequence[Row], names: Mapping[str, str]) -> Table:
    columns = list(columns)
    lines = [
        [Cell(visible(names[row.name], NAME)), *(Cell(visible(text(row), 4 * NAME)) for _, text in columns)]
        for row in rows
    ]
    return Table(key, caption, ["variant", *(visible(title, NAME) for title, _ in columns)], lines)


def _matched(board: Leaderboard, found: Matched, names: Mapping[str, str]) -> Table:
    rows, columns = matched_columns(board, found)
    caption = (
        "Interpolated between evaluation points for each prompt and seed, with 95% intervals for new prompts and new seeds"
        f"{_n(found.rewards.values())}; nothing is tested. Variants that are not listed moved less far from the reference."
    )
    return _table("matched", caption, columns, rows, names)


def _n(found: Iterable[Estimate]) -> str:
    """Return the numbers of seeds and prompts behind these estimates, in brackets; "" where there are none."""
    found = [one for one in found if one.prompts]
    if not found:
        return ""
    seeds = format_count((one.seeds for one in found), "seed")
    return f" (n = {seeds}, {format_count((one.prompts for one in found), 'prompt')})"


def _components(board: Leaderboard, found: pd.Series) -> Table:
    values = {str(name): float(value) for name, value in found.items() if math.isfinite(float(value))}
    total = sum(values.values())
    lines = [
        [Cell(name), Cell(f"{value:.3g}", value), Cell(f"{math.sqrt(value):.3g}", value), Cell(f"{value / total:.0%}" if total else UNDEFINED, value)]
        for name, value in values.items()
    ]  # fmt: skip
    caption = (
        f"Analysis of variance of {board.primary_metric} over the prompts and seeds that all variants have; a negative estimate "
        f"is shown as 0. {said_of_components(values)}"
    )
    return Table("components", caption, ["component", "variance", "sd", "share"], lines)
