"""Figure of the differences between all pairs of rows, with the tests that the ranks come from."""

import math
from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

from plo.leaderboards.board import Leaderboard
from plo.leaderboards.columns import label as metric_label
from plo.leaderboards.formatting import format_count, format_number
from plo.leaderboards.items import values_by_prompt
from plo.leaderboards.page.drawing import INK, NEGATIVE, POSITIVE, Figure, canvas, to_svg
from plo.leaderboards.page.looks import Look, score
from plo.leaderboards.page.text import label
from plo.statistics import Comparison, RunNoise, compare_pairs
from plo.statistics.intervals import StatisticsError

NARROW = 9  # most rows of a figure of half the page's width
NUMBERS = 16  # most rows whose differences are written into the cells
STRONGEST = 0.75  # opacity of the largest difference
SQUARE = Path([(-0.48, -0.48), (0.48, -0.48), (0.48, 0.48), (-0.48, 0.48), (-0.48, -0.48)], closed=True)


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
        noises = {metric: one.of_mean for section in board.sections for metric, one in section.noise.items()}
        found = compare_pairs(
            {row.name: tables[row.name] for row in rows},
            combinations([row.name for row in rows], 2),
            noise=noises.get(name, RunNoise()),
        )
    except StatisticsError:  # two rows have no prompt in common, which the notes say
        return None
    alpha = board.design.judgement.alpha if board.design else 0.05
    apart = {pair for pair, one in found.items() if one.p_holm < alpha}
    sign = -1 if board.descriptions[name].better == "↓" else 1
    alternative = f"{len(apart)} of {len(found)} pairs of variants are separated: " + "; ".join(
        f"{label(names[first])} and {label(names[second])}" for first, second in found if (first, second) in apart
    )
    is_small, is_wide = len(rows) <= NUMBERS, len(rows) > NARROW
    with canvas(9.4 if is_wide else 4.7, 1.3 + (0.2 if is_wide else 0.3) * len(rows)) as drawn:
        axes = drawn.add_subplot()
        largest = max((abs(one.mean) for one in found.values() if not math.isnan(one.mean)), default=0) or 1.0
        marks: list[tuple[float, float]] = []
        place = {row.name: i for i, row in enumerate(rows)}
        shades: dict[tuple[str, float], list[Path]] = defaultdict(list)  # one element for all cells of a shade
        for (first, second), one in found.items():
            if math.isnan(one.mean):
                continue
            upper, lower = place[first], place[second]
            for y, x, mean in ((upper, lower, one.mean), (lower, upper, -one.mean)):
                strength = round(STRONGEST * abs(mean) / largest, 2)
                shades[POSITIVE if mean * sign > 0 else NEGATIVE, strength].append(
                    SQUARE.transformed(Affine2D().translate(x, y))
                )
                if (first, second) in apart:
                    marks.append((x, y + (0.25 if is_small else 0)))
                if is_small:
                    axes.text(x, y, _told(board, mean, name), ha="center", va="center", fontsize=7)
        for (colour, strength), squares in shades.items():
            axes.add_patch(PathPatch(Path.make_compound_path(*squares), color=colour, alpha=strength, linewidth=0))
        axes.plot(*zip(*marks, strict=True) if marks else ((), ()), color=INK, marker="o", markersize=1.8, linestyle="")
        ticks = [label(names[row.name], 16) for row in rows]
        slanted: dict[str, Any] = (
            {"rotation": 90} if is_wide else {"rotation": 45, "ha": "left", "rotation_mode": "anchor"}
        )
        axes.set_xticks(range(len(rows)), ticks, **slanted)
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
    return Figure("pairs", "Every variant against every other", svg, alternative, caption, is_wide)


def _told(board: Leaderboard, mean: float, name: str) -> str:
    return format_number(mean, min(board.descriptions[name].digits, 2), "+")


def _size(found: Mapping[tuple[str, str], Comparison]) -> str:
    seeds, prompts = ([getattr(one, key) for one in found.values()] for key in ("seeds", "prompts"))
    return f"{format_count(seeds, 'seed')} and {format_count(prompts, 'prompt')}"
