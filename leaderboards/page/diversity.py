"""Figure of quality against diversity, measured on texts of one length: diversity falls as texts become longer."""

import math
from collections.abc import Mapping

from plo.leaderboards.board import Leaderboard
from plo.leaderboards.columns import label as metric_label
from plo.leaderboards.formatting import format_count
from plo.leaderboards.page.drawing import INK, Figure, canvas, to_svg
from plo.leaderboards.page.looks import OTHER, Look
from plo.leaderboards.page.text import capital, label

LEAST_WORDS = 5  # nearly all n-grams of shorter beginnings are distinct


def diversity_figure(board: Leaderboard, names: Mapping[str, str], looks: Mapping[str, Look]) -> Figure | None:
    """Draw each row's win rate, or else its primary metric, against the distinct n-grams of its texts at one length."""
    name, found = quality_metric(board), board.fixed_length
    if name is None or found is None or found.words < LEAST_WORDS:
        return None
    rows = [row for row in board.rows if row.name in found.distinct and name in row.metrics]
    if len(rows) < 2:
        return None
    what = metric_label(board, name) if name in board.sample_metrics else board.descriptions[name].label
    points = {row.name: (found.distinct[row.name], row.metrics[name]) for row in rows}
    alternative = f"Diversity and {what}: " + "; ".join(
        f"{label(names[key])} {x.mean:.3f}, {y.mean:.3f}" for key, (x, y) in points.items()
    )
    with canvas() as drawn:
        axes = drawn.add_subplot()
        for row in rows:
            look, (x, y) = looks.get(row.name, OTHER), points[row.name]
            colour = INK if row.loss == "reference" else look.colour
            marker = "*" if row.loss == "reference" else look.marker
            errors = [0.0 if math.isnan(one.sd) else one.sd for one in (x, y)]
            axes.errorbar(x.mean, y.mean, xerr=errors[0], yerr=errors[1], color=colour, marker=marker, elinewidth=0.8, linestyle="",
                          markersize=8 if row.loss == "reference" else 5)  # fmt: skip
            if row.name in looks or row.loss == "reference":
                axes.annotate(
                    label(names[row.name], 18),
                    (x.mean, y.mean),
                    (4, 4),
                    textcoords="offset points",
                    color=colour,
                    fontsize=7,
                )
        axes.set_xlabel(f"distinct-{found.n} of the first {found.words} words (→ more diverse)")
        axes.set_ylabel(label(what))
        axes.grid()
        axes.margins(x=0.15)
        svg = to_svg(drawn, "diversity", alternative)
    seeds = [x.n for x, _ in points.values()]
    others = " Coloured: the baseline and the best rows." if len(rows) > len(looks) + 1 else ""
    caption = (
        f"{capital(what)} over all prompts, against unique / all {found.n}-grams of a seed's samples that are cut to their first "
        f"{found.words} words, over the {found.prompts} prompts whose samples are as long everywhere. Means over "
        f"{format_count(seeds, 'seed')}; bars: ± 1 standard deviation over seeds. Nothing is tested.{others}"
    )
    return Figure("diversity", f"{capital(label(what))} against diversity at one length", svg, alternative, caption)


def quality_metric(board: Leaderboard) -> str | None:
    """Return a win rate of the table that may be shown, or else the primary metric."""
    shown = [name for name in board.metrics if not board.is_hidden(name)]
    rates = [name for name in shown if name.rpartition(".")[2] in ("win_rate", "gold_win_rate")]
    return next(iter(rates), board.primary_metric if board.primary_metric in shown else None)
