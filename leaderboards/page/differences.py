"""Figures of the tests on the primary metric: differences from the baseline, and differences of all pairs of rows."""

import math
from collections.abc import Mapping

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.columns import label as metric_label
from plo.leaderboards.formatting import format_count, format_number
from plo.leaderboards.page.drawing import FAINT, INK, NEGATIVE, POSITIVE, Figure, canvas, to_svg
from plo.leaderboards.page.looks import Look
from plo.leaderboards.page.text import label

MARKS = {"better": ("^", POSITIVE), "worse": ("v", NEGATIVE), "equivalent": ("s", INK), "undecided": ("o", INK)}


def forest_figure(board: Leaderboard, names: Mapping[str, str], looks: Mapping[str, Look]) -> Figure | None:
    """Draw each row's difference from the baseline with its interval, and the margin of equivalence."""
    name, base = board.primary_metric, board.baseline
    if name is None or base is None or board.is_hidden(name):
        return None
    metric = board.descriptions[name]
    rows = [row for row in board.rows if name in row.differences and not math.isnan(row.differences[name].mean)]
    rows.sort(key=lambda row: row.differences[name].mean, reverse=metric.better == "↓")
    if not rows:
        return None
    margin = board.design.margin if board.design else None
    what, baseline = metric_label(board, name), names[base.name]
    told = "; ".join(f"{label(names[row.name])} {_said(board, row, name)}" for row in reversed(rows))
    alternative = f"Differences in {what} from {label(baseline)}: {told}."
    with canvas(height=0.75 + 0.21 * len(rows)) as drawn:
        axes = drawn.add_subplot()
        if margin:
            axes.axvspan(-margin, margin, color=FAINT, alpha=0.18, linewidth=0)
        axes.axvline(0, color=INK, linewidth=0.8)
        for place, row in enumerate(rows):
            gap, (marker, colour) = row.differences[name], MARKS.get(row.verdict or "", (".", FAINT))
            if not math.isnan(gap.low):
                axes.plot([gap.low, gap.high], [place, place], color=colour, linewidth=1.6)
            face = "none" if row.verdict == "undecided" else colour
            axes.plot(gap.mean, place, marker=marker, color=colour, markerfacecolor=face, markersize=6)
            said = row.verdict or "not tested"
            axes.text(1.02, place, said, transform=axes.get_yaxis_transform(), va="center", color=colour, fontsize=8)
        axes.set_yticks(range(len(rows)), [label(names[row.name]) for row in rows])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        arrow = {"↑": " (→ better)", "↓": " (← better)"}.get(metric.better, "")
        axes.set_xlabel(f"Δ {label(what)} from {label(baseline, 16)}{arrow}")
        svg = to_svg(drawn, "forest", alternative)
    found = [row.differences[name] for row in rows]
    caption = (
        f"Difference in {what} from {baseline}, in units of {what}; bars: 95% intervals for new prompts and new seeds, "
        f"not corrected for the number of variants. {format_count([gap.seeds for gap in found], 'seed')}, "
        f"{format_count([gap.prompts for gap in found], 'prompt')}. "
        + (f"Grey: the margin of equivalence, ±{margin:g}. " if margin else "")
        + "The words are the verdicts, which are corrected."
    )
    return Figure("forest", f"Difference from {label(baseline)}", svg, alternative, caption)


def _said(board: Leaderboard, row: Row, name: str) -> str:
    digits, gap = board.descriptions[name].digits, row.differences[name]
    low, high = (format_number(end, digits, "+") for end in (gap.low, gap.high))
    return f"{format_number(gap.mean, digits, '+')} [{low}, {high}], {row.verdict or 'not tested'}"
