"""Markdown of what evaluations of level "model" found, of the variance components and of the head to head."""

import math
from collections.abc import Callable, Mapping, Sequence

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.formatting import (
    UNDEFINED,
    escape,
    format_difference,
    format_interval,
    format_number,
    format_spread,
    markdown_table,
)
from plo.leaderboards.metrics import Metric
from plo.leaderboards.sections import Section

UNINFORMATIVE = "uninformative judge"
Column = tuple[str, Callable[[Row], str]]


def detectable(board: Leaderboard, name: str, how: Metric) -> str:
    """The minimal detectable difference, for the title of a column of differences; above all that can be: "> 1.000"."""
    found = next((row.differences[name].detectable for row in board.rows if name in row.differences), math.nan)
    greatest = how.bounds[1] - how.bounds[0]
    return f", MDD {'> ' if found > greatest else ''}{format_number(min(found, greatest), how.digits)}"


def section(one: Section, board: Leaderboard, short: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """The judge's card and notes; a table of the metrics of which one direction is better, with differences to the
    baseline; and one of what stands beside them (lengths and the like)."""
    parts = [f"## {escape(one.title)}"]
    for judge in one.judges:
        title = f"Judge {escape(judge['judge'])}" + (f", prompt {escape(judge['prompt'])}:" if judge["prompt"] else ":")
        card = judge.get("card") or [_no_card(judge)]
        parts.append("\n".join([title, "", *(f"- {escape(line, 400)}" for line in card)]))
    if one.notes:
        parts.append("\n".join(["Of these numbers:", "", *(f"- {escape(note, 1000)}" for note in one.notes)]))
    seen = [row for row in rows if any(name in row.metrics for name in one.metrics)]
    known = any(one.describe(name).better for name in one.metrics)  # else all are compared, in either direction
    better = [name for name in one.metrics if not known or one.describe(name).better]
    better.sort(key=lambda name: not one.is_judged(name))  # verdicts first
    beside = [name for name in one.metrics if name not in better]
    for names in (better, beside):
        columns = [*short, *(column for name in names for column in _columns(one, name, board, names is better))]
        if names:
            parts.append(
                markdown_table([title for title, _ in columns], ([show(row) for _, show in columns] for row in seen))
            )
    return parts


def _no_card(judge: Mapping[str, str]) -> str:
    if judge["judge"].startswith("gold:"):
        return "a reward of the text, known exactly: what it says of other qualities is not known"
    prompt = f" --template {judge['prompt']}" if judge["prompt"] else ""
    return f"no card: measure its agreement with gold labels by plo judge-check '{judge['given']}' PAIRS{prompt}"


def _columns(one: Section, name: str, board: Leaderboard, differences: bool) -> list[Column]:
    how = one.describe(name)
    title = escape(f"{how.label} {how.better}".strip())
    if one.is_hidden(name):
        return [(title, lambda row: UNINFORMATIVE if name in row.metrics else UNDEFINED)]

    def mean(row: Row) -> str:
        within = f" {format_interval(row.estimates[name], how.digits)}" if name in row.estimates else ""
        shown = format_spread(row.metrics.get(name), how.digits)
        return shown if shown == UNDEFINED else shown + within

    def gap(row: Row) -> str:
        return "baseline" if row is board.baseline else format_difference(row.differences.get(name), how.digits)

    if not differences:  # what stands beside the results tells of the judge and the texts
        return [(title, lambda row: format_spread(row.metrics.get(name), how.digits))]
    shown: list[Column] = [(f"{title} [95%]", mean)]
    if any(name in row.differences for row in board.rows):
        shown.append((f"Δ {escape(how.label)} [95%]{detectable(board, name, how)}", gap))
    return shown


def components(board: Leaderboard) -> list[str]:
    """Where the variance of the primary metric comes from."""
    if board.components is None:
        return []
    found = board.components.dropna()
    total = found.sum()
    body = [
        [
            name.replace(" x ", " × "),
            f"{value:.3g}",
            f"{math.sqrt(value):.3g}",
            f"{value / total:.0%}" if total else UNDEFINED,
        ]
        for name, value in found.items()
    ]
    rest = "The residual holds what one cell of variant, seed and prompt cannot be told apart in."
    if "judge" in found:
        rest = "Text is what all judges share about one text; the residual is what they disagree in."
    return [
        "## Variance components",
        f"Of {escape(board.primary_metric)}, by analysis of variance over the prompts and seeds that all variants have; a negative "
        f"estimate is shown as 0. {rest}",
        markdown_table(["component", "variance", "sd", "share"], body),
    ]


def head_to_head(board: Leaderboard) -> list[str]:
    """Ratings of the variants on the primary metric."""
    if board.ratings is None:
        return []
    found, titles = board.ratings, {row.name: board.title(row) for row in board.rows}
    body = [
        [
            escape(titles[name]),
            f"{row.rating:+.0f}",
            f"{row['rank']:.0f} [{row.low:.0f}, {row.high:.0f}]",
            f"{row.wins:.3f}",
        ]
        for name, row in found.table.iterrows()
    ]
    wins = "lower" if board.descriptions[board.primary_metric].better == "↓" else "higher"
    cycles = "undefined" if math.isnan(found.cycle_rate) else f"{found.cycle_rate:.1%}"
    return [
        "## Head to head",
        f"On every prompt and seed the variant with the {wins} {escape(board.primary_metric)} wins. Bradley-Terry ratings in Elo points "
        f"(mean 0), ranks with 95% intervals by bootstrap over {found.prompts} prompts: they tell what other prompts might show, "
        f"not what other seeds might. Intransitive triples: {cycles}.",
        markdown_table(["variant", "rating", "rank [95%]", "wins"], body),
    ]
