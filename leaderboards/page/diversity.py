"""Figure of quality against diversity, measured on texts of one length: diversity falls as texts become longer."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.checks import natural_key
from plo.leaderboards.columns import label as metric_label
from plo.leaderboards.formatting import format_range
from plo.leaderboards.page.drawing import INK, Figure, canvas, to_svg
from plo.leaderboards.page.looks import OTHER, Look
from plo.leaderboards.page.text import label
from plo.statistics import cut_to_common_length, spread
from plo.statistics.intervals import StatisticsError

PROMPTS = 100  # most prompts whose texts are counted
LEAST_WORDS = 5  # on shorter beginnings nearly every word is distinct


def diversity_figure(board: Leaderboard, names: Mapping[str, str], looks: Mapping[str, Look]) -> Figure | None:
    """Draw each row's win rate, or else its primary metric, against distinct-1 of its texts cut to a common length."""
    name = quality_metric(board)
    if name is None or (found := distinct_at_fixed_length(board)) is None:
        return None
    words, prompts, samples, by_row = found
    rows = [row for row in board.rows if row.name in by_row and name in row.metrics]
    if len(rows) < 2:
        return None
    what = metric_label(board, name) if name in board.sample_metrics else board.descriptions[name].label
    points = {row.name: (spread(by_row[row.name]), row.metrics[name]) for row in rows}
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
        axes.set_xlabel(f"distinct-1 of the first {words} words (right is more diverse)")
        axes.set_ylabel(label(what))
        axes.grid()
        axes.margins(x=0.15)
        svg = to_svg(drawn, "diversity", alternative)
    seeds = [x.n for x, _ in points.values()]
    others = " Coloured: the baseline and the best rows." if len(rows) > len(looks) + 1 else ""
    caption = (
        f"{what} (all prompts) against distinct-1: unique / all words over the {samples} samples of a prompt, each cut to its first "
        f"{words} words, mean over {prompts} prompts whose samples are all that long. Means over {format_range(seeds)} seeds; bars: "
        f"± 1 standard deviation over seeds. Nothing is tested.{others}"
    )
    return Figure("diversity", f"{label(what).capitalize()} against diversity at one length", svg, alternative, caption)


def quality_metric(board: Leaderboard) -> str | None:
    """Return a win rate of the table that may be shown, or else the primary metric."""
    shown = [name for name in board.metrics if not board.is_hidden(name)]
    rates = [name for name in shown if name.rpartition(".")[2] in ("win_rate", "gold_win_rate")]
    return next(iter(rates), board.primary_metric if board.primary_metric in shown else None)


def distinct_at_fixed_length(board: Leaderboard) -> tuple[int, int, str, dict[str, list[float]]] | None:
    """Return the number of words, of prompts and of samples, and {row: distinct-1 of each seed}; None where texts are too short.

    Seeds are those that all rows have. The texts are cut to the largest number of words that leaves half of the prompts.
    """
    rows = [row for row in board.rows if any(run in board.tables for run in row.runs.values())]
    seeds = _common_seeds(board, rows)
    if not seeds:
        return None
    frames = {(row.name, seed): board.tables[row.runs[seed]] for row in rows for seed in seeds}
    common = sorted(
        set.intersection(*(set(frame["prompt_id"]) for frame in frames.values())), key=lambda one: natural_key(str(one))
    )
    chosen = (
        {common[place * len(common) // PROMPTS] for place in range(PROMPTS)} if len(common) > PROMPTS else set(common)
    )
    texts = {}
    for place, frame in enumerate(frames.values()):
        own = frame[frame["prompt_id"].isin(chosen)]
        texts[str(place)] = {
            prompt: [text.split() for text in each["text"]] for prompt, each in own.groupby("prompt_id")
        }
    counts = {len(each) for by_prompt in texts.values() for each in by_prompt.values()}
    try:
        words, cut = cut_to_common_length(texts)
    except StatisticsError:
        return None
    if words < LEAST_WORDS or max(counts, default=0) < 2:
        return None
    found: dict[str, list[float]] = {}
    for (name, _), by_prompt in zip(frames, cut.values(), strict=True):
        found.setdefault(name, []).append(float(np.mean([_distinct(each) for each in by_prompt.values()])))
    return words, len(next(iter(cut.values()))), format_range(counts), found


def _common_seeds(board: Leaderboard, rows: Sequence[Row]) -> list[str]:
    seeds = [{seed for seed, run in row.runs.items() if run in board.tables} for row in rows]
    return sorted(set.intersection(*seeds), key=natural_key) if seeds else []


def _distinct(texts: Sequence[Sequence[object]]) -> float:
    words = [word for text in texts for word in text]
    return len(set(words)) / len(words)
