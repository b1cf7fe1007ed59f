"""Figure of the differences between all pairs of rows, with the tests that the ranks come from."""

import math
from collections.abc import Mapping
from itertools import combinations

from matplotlib.patches import Rectangle

from plo.leaderboards.board import Leaderboard
from plo.leaderboards.columns import label as metric_label
from plo.leaderboards.formatting import format_number, format_range
from plo.leaderboards.items import values_by_prompt
from plo.leaderboards.page.drawing import NEGATIVE, POSITIVE, Figure, canvas, to_svg
from plo.leaderboards.page.looks import Look, score
from plo.leaderboards.page.text import label
from plo.statistics import Comparison, compare_pairs
from plo.statistics.intervals import StatisticsError

NUMBERS = 12  # most rows whose differences are written into the cells
STRONGEST = 0.75  # opacity of the largest difference


def pairs_figure(board: Leaderboard, names: Mapping[str, str], looks: Mapping[str, Look]) -> Figure | None:
    """Draw the difference of each row from each other row, and mark those that Holm's correction leaves."""
    name = board.primary_metric
    if name is None or board.is_hidden(name) or not board.descriptions[name].better:
        return None
    tables = values_by_prompt(board.rows, [name], board.tables, board.sections).get(name, {})
    rows = [row for row in board.rows if row.name in tables and row.loss != "reference" and not row.is_ceiling]
    rows.sort(key=lambda row: -score(board, row))
    if len(rows) < 3:  # two rows have one difference, which another figure shows
        return None
    try:
        found = compare_pairs({row.name: tables[row.name] for row in rows}, combinations([row.name for row in rows], 2))
    except StatisticsError:  # two rows have no prompt in common, which the notes say
        return None
    alpha = board.design.judgement.alpha if board.design else 0.05
    apart = {pair for pair, one in found.items() if one.p_holm < alpha}
    sign = -1 if board.descriptions[name].better == "↓" else 1
    alternative = f"{len(apart)} of {len(found)} pairs of variants are separated: " + "; ".join(
        f"{label(names[first])} and {label(names[second])}" for first, second in found if (first, second) in apart
    )
    with canvas(height=1.3 + 0.3 * min(len(rows), 20)) as drawn:
        axes = drawn.add_subplot()
        largest = max((abs(one.mean) for one in found.values() if not math.isnan(one.mean)), default=0) or 1.0
        for (first, second), one in found.items():
            upper, lower = (next(i for i, row in enumerate(rows) if row.name == key) for key in (first, second))
            if math.isnan(one.mean):
                continue
            for y, x, mean in ((upper, lower, one.mean), (lower, upper, -one.mean)):
                colour, strength = POSITIVE if mean * sign > 0 else NEGATIVE, STRONGEST * abs(mean) / largest
                axes.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, color=colour, alpha=strength, linewidth=0))
                told = _told(board, mean, name) if len(rows) <= NUMBERS else ""
                mark = "•" if (first, second) in apart else ""
                axes.text(
                    x, y, f"{told}\n{mark}" if told and mark else told or mark, ha="center", va="center", fontsize=7
                )
        ticks = [label(names[row.name], 16) for row in rows]
        axes.set_xticks(range(len(rows)), ticks, rotation=45, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(len(rows)), ticks)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_xlim(-0.5, len(rows) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.spines[:].set_visible(False)
        svg = to_svg(drawn, "pairs", alternative)
    what = metric_label(board, name)
    caption = (
        f"Row minus column, in units of {what}; green: that of the row is better, red: that of the column. •: the difference is significant after "
        f"Holm's correction for {len(found)} pairs at level {alpha:g}, over {_size(found)}. No judge saw two texts together: these "
        "are differences of scores."
    )
    return Figure("pairs", "Every variant against every other", svg, alternative, caption)


def _told(board: Leaderboard, mean: float, name: str) -> str:
    return format_number(mean, min(board.descriptions[name].digits, 2), "+")


def _size(found: Mapping[tuple[str, str], Comparison]) -> str:
    seeds, prompts = ([getattr(one, key) for one in found.values()] for key in ("seeds", "prompts"))
    return f"{format_range(seeds)} seeds and {format_range(prompts)} prompts"
