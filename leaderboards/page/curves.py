"""Figures along a scale: reward against KL, training curves, and the best score of n tuning trials."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from plo.leaderboards.board import Leaderboard
from plo.leaderboards.formatting import format_count, format_range
from plo.leaderboards.page.drawing import FAINT, INK, Figure, canvas, to_svg
from plo.leaderboards.page.looks import OTHER, Look, add_legend
from plo.leaderboards.page.text import label
from plo.leaderboards.tuning import best_of
from plo.tracking import RecordedCell

WIDTH = 60  # characters of a metric's name over a panel
Line = list[tuple[float, list[float]]]  # x, and the values of the seeds there
# Metrics of a training and what they are, with their units; those whose scale is the same for every loss.
TRAINING = {
    "accuracy": "share of training pairs ranked as labelled",
    "margin": "margin of a pair's log-ratios, nats",
}


def frontier_figure(board: Leaderboard, names: Mapping[str, str], looks: Mapping[str, Look]) -> Figure | None:
    """Draw reward against KL along the training, with the spread of the seeds and the last point's interval."""
    paths = _paths(board)
    if not paths:
        return None
    reference = next((row for row in board.rows if row.loss == "reference" and "reward" in row.metrics), None)
    start = [(0.0, [0.0], list(reference.values["reward"].values()))] if reference else []
    ends = "; ".join(
        f"{label(names[name])}: KL {np.mean(points[-1][1]):.2f}, reward {np.mean(points[-1][2]):.2f}"
        for name, points in paths.items()
    )
    alternative = f"Reward against KL at the end of training. {ends}."
    by_name = {row.name: row for row in board.rows}
    with canvas(height=3.8) as drawn:
        axes = drawn.add_subplot()
        for name in sorted(paths, key=lambda name: name in looks):
            look, points = looks.get(name, OTHER), start + paths[name]
            kl, mean = ([float(np.mean(point[place])) for point in points] for place in (1, 2))
            thin = name not in looks
            axes.plot(kl, mean, color=look.colour, linestyle=look.dash, marker="" if thin else look.marker,
                      markersize=4, linewidth=0.6 if thin else 1.3)  # fmt: skip
            if thin:
                continue
            sd = [float(np.std(point[2], ddof=1)) if len(point[2]) > 1 else 0.0 for point in points]
            axes.fill_between(kl, np.subtract(mean, sd), np.add(mean, sd), color=look.colour, alpha=0.12, linewidth=0)
            found = by_name[name].estimates.get("reward")
            if found is not None and not math.isnan(found.low):
                axes.plot([kl[-1], kl[-1]], [found.low, found.high], color=look.colour, linewidth=1)
        if reference:
            axes.plot(0, np.mean(start[0][2]), marker="*", color=INK, markersize=8, clip_on=False)
        axes.set_xscale("function", functions=(lambda kl: np.sqrt(np.clip(kl, 0, None)), np.square))
        axes.set_xlim(left=0)
        axes.set_xlabel("KL(policy || reference), nats (square-root scale)")
        axes.set_ylabel("reward")
        axes.grid()
        others = add_legend(drawn, looks, names, list(paths))
        svg = to_svg(drawn, "frontier", alternative)
    seeds = [len(points[-1][1]) for points in paths.values()]
    meaning = board.descriptions["reward"].meaning if "reward" in board.descriptions else ""
    caption = (
        f"Reward ({meaning}) against sequence KL from the reference (★), one marker per evaluation point; means over "
        f"{format_count(seeds, 'seed')}. Bands: ± 1 standard deviation over seeds. Bar at the last point: 95% interval of its "
        f"reward for new prompts and new seeds.{others}"
    )
    return Figure("frontier", "Reward against KL", svg, alternative, caption)


def training_figure(board: Leaderboard, names: Mapping[str, str], looks: Mapping[str, Look]) -> Figure | None:
    """Draw what each training logged about its pairs, with the spread of the seeds."""
    logged = {metric: _lines(board, lambda cell, metric=metric: _logged(cell, metric)) for metric in TRAINING}
    found = {metric: lines for metric, lines in logged.items() if lines}
    if not found:
        return None
    with canvas(height=0.9 + 1.6 * len(found)) as drawn:
        panels, alternative, bands = _panels(drawn, "Training curves", found, names, looks)
        for axes, metric in zip(panels, found, strict=True):
            axes.set_ylabel(TRAINING[metric].replace(" ranked", "\nranked").replace(" log", "\nlog"))
        panels[-1].set_xlabel("optimiser step")
        svg = to_svg(drawn, "training", alternative)
    caption = f"What was logged on training batches, {bands} Losses themselves are not drawn: their scales differ."
    return Figure("training", "Training curves", svg, alternative, caption)


def judged_figure(board: Leaderboard, names: Mapping[str, str], looks: Mapping[str, Look]) -> Figure | None:
    """Draw the judged win rates of the samples at each evaluation point, with the spread of the seeds."""
    found = {
        name: lines
        for section in board.sections
        for name, curves in section.curves.items()
        if name in section.metrics and section.is_judged(name) and not section.is_hidden(name)
        if (lines := _lines(board, lambda cell, curves=curves: curves.get(cell.run_id, {})))
    }
    if not found:
        return None
    with canvas(height=0.9 + 1.6 * len(found)) as drawn:
        panels, alternative, bands = _panels(drawn, "Judged win rates along training", found, names, looks)
        for axes, name in zip(panels, found, strict=True):
            axes.axhline(0.5, color=FAINT, linewidth=0.8, zorder=0)
            axes.set_title(label(name.replace("_", " "), WIDTH), loc="left")
            axes.set_ylabel("win rate")
        panels[-1].set_xlabel("share of training")
        svg = to_svg(drawn, "judged", alternative)
    caption = (
        f"Win rates of the samples of each evaluation point by the judges of the evaluations, {bands} At the line, 0.5, they are "
        "as good as the opponent's. The last points are those of the tables, which have the intervals."
    )
    return Figure("judged", "Judged win rates along training", svg, alternative, caption)


def tuning_figure(board: Leaderboard, names: Mapping[str, str], looks: Mapping[str, Look]) -> Figure | None:
    """Draw the expected best score of the first n trials of each tuning."""
    curves = {row.name: best_of(board, row) for row in board.rows}
    lines: dict[str, Line] = {
        name: [(n, [value]) for n, value in enumerate(best, 1)]
        for name, best in curves.items()
        if len(best) > 1 and not any(map(math.isnan, best))
    }
    if not lines:
        return None
    metric = next(str(row.tuning["metric"]) for row in board.rows if row.tuning)
    ends = "; ".join(
        f"{label(names[name])}: {line[0][1][0]:.2f} to {line[-1][1][0]:.2f}" for name, line in lines.items()
    )
    alternative = f"Expected best {metric} of one trial, and of all trials. {ends}."
    with canvas() as drawn:
        axes = drawn.add_subplot()
        _draw(axes, lines, looks)
        axes.set_xlabel("number of trials")
        axes.set_ylabel(f"expected best {label(metric)}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        others = add_legend(drawn, looks, names, list(lines))
        svg = to_svg(drawn, "tuning", alternative)
    counts = [len(line) for line in lines.values()]
    caption = (
        f"Expected best {metric} of n of the {format_range(counts)} first, short trials of each variant, each with one seed on the "
        f"tuning prompts. There is no interval.{others}"
    )
    return Figure("tuning", "Tuning: best of n trials", svg, alternative, caption)


def _paths(board: Leaderboard) -> dict[str, list[tuple[float, list[float], list[float]]]]:
    """Return {row: (share of training, KLs, rewards) of its seeds at each evaluation point}."""
    by_run = {cell.run_id: cell for cell in board.cells}
    paths = {}
    for row in board.rows:
        points: dict[float, list[tuple[float, float]]] = defaultdict(list)
        for run in row.runs.values() if row.loss != "reference" else ():
            reward, kl = (by_run[run].history(name) for name in ("reward", "kl"))
            last = max(reward, default=0)
            for step in reward.keys() & kl.keys():
                if math.isfinite(reward[step]) and math.isfinite(kl[step]):
                    points[round(step / max(1, last), 3)].append((kl[step], reward[step]))
        if points:
            paths[row.name] = [(share, *map(list, zip(*found, strict=True))) for share, found in sorted(points.items())]
    return paths


def _logged(cell: RecordedCell, metric: str) -> Mapping[int, float]:
    """Return what a training logged of a metric, by step; empty if it did not."""
    return cell.history(metric) if metric in cell.metrics else {}


def _lines(board: Leaderboard, history: Callable[[RecordedCell], Mapping[Any, float]]) -> dict[str, Line]:
    """Return {row: the values of its seeds at each place} for the rows whose histories have two places or more."""
    by_run, lines = {cell.run_id: cell for cell in board.cells}, {}
    for row in board.rows:
        places: dict[float, list[float]] = defaultdict(list)
        for run in row.runs.values():
            for place, value in history(by_run[run]).items():
                if math.isfinite(value):
                    places[place].append(value)
        if len(places) > 1:
            lines[row.name] = sorted(places.items())
    return lines


def _panels(
    drawn: Canvas,
    title: str,
    found: Mapping[str, Mapping[str, Line]],
    names: Mapping[str, str],
    looks: Mapping[str, Look],
) -> tuple[Sequence[Any], str, str]:
    """Draw a panel for each metric, one below the other; return them, what they show in words, and what the bands are."""
    panels = drawn.subplots(len(found), 1, squeeze=False, sharex=True)[:, 0]
    for axes, lines in zip(panels, found.values(), strict=True):
        _draw(axes, lines, looks)
    ends = "; ".join(
        f"{label(metric.replace('_', ' '), WIDTH)}: "
        + ", ".join(f"{label(names[row])} {np.mean(line[-1][1]):.2f}" for row, line in lines.items())
        for metric, lines in found.items()
    )
    others = add_legend(drawn, looks, names, list(dict.fromkeys(row for lines in found.values() for row in lines)))
    seeds = format_count([len(line[-1][1]) for lines in found.values() for line in lines.values()], "seed")
    bands = f"means over {seeds}; bands: ± 1 standard deviation over seeds.{others}"
    return panels, f"{title}. Last values: {ends}.", bands


def _draw(axes: Any, lines: Mapping[str, Line], looks: Mapping[str, Look]) -> None:
    for name in sorted(lines, key=lambda name: name in looks):
        look, thin = looks.get(name, OTHER), name not in looks
        x, values = zip(*lines[name], strict=True)
        mean = [float(np.mean(one)) for one in values]
        marker = "" if thin or len(x) > 30 else look.marker
        axes.plot(
            x, mean, color=look.colour, linestyle=look.dash, marker=marker, markersize=3, linewidth=0.6 if thin else 1.3
        )
        sd = [float(np.std(one, ddof=1)) if len(one) > 1 else 0.0 for one in values]
        if not thin and any(sd):
            axes.fill_between(x, np.subtract(mean, sd), np.add(mean, sd), color=look.colour, alpha=0.12, linewidth=0)
    axes.grid()
