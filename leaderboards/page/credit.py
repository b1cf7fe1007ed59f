"""Figures of token credit: its correlation with the truth, and the credit of each token of one response."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.formatting import format_count
from plo.leaderboards.page.drawing import FAINT, INK, NEGATIVE, POSITIVE, Figure, canvas, to_svg
from plo.leaderboards.page.looks import OTHER, Look
from plo.leaderboards.page.text import label
from plo.leaderboards.sections import Section
from plo.tracking import TrackingError

TOKENS = "credit_tokens.json"  # table of an evaluation with response, word, log_ratio and advantage of each token
MEASURES = {"r_A": "all tokens", "r_A0": "tokens without a reward of their own"}
LONGEST = 26  # tokens of the response that is drawn
STRONGEST = 0.85


def credit_figure(board: Leaderboard, names: Mapping[str, str], looks: Mapping[str, Look]) -> Figure | None:
    """Draw the correlation of each row's token rewards with the true advantage."""
    section = _section(board)
    if section is None:
        return None
    metrics = {full: MEASURES[short] for full in section.metrics if (short := section.short_name(full)) in MEASURES}
    rows = [row for row in board.rows if row.loss != "reference" and any(name in row.metrics for name in metrics)]
    if not metrics or not rows:
        return None
    main = next(iter(metrics))
    rows.sort(key=lambda row: row.metrics[main].mean if main in row.metrics else -math.inf)
    alternative = "Correlation with the true advantage, " + "; ".join(
        f"{label(names[row.name])} {row.metrics[main].mean:.3f}" for row in rows if main in row.metrics
    )
    with canvas(height=0.95 + 0.21 * len(rows)) as drawn:
        axes = drawn.add_subplot()
        for place, row in enumerate(rows):
            look = looks.get(row.name, OTHER)
            for offset, name in zip((0.12, -0.16), metrics, strict=False):
                if name not in row.metrics:
                    continue
                found, is_main = row.estimates.get(name), name == main
                if found is not None and not math.isnan(found.low):
                    axes.plot(
                        [found.low, found.high],
                        [place + offset] * 2,
                        color=look.colour,
                        linewidth=1.6 if is_main else 0.8,
                    )
                face = look.colour if is_main else "none"
                axes.plot(
                    row.metrics[name].mean,
                    place + offset,
                    marker="o",
                    color=look.colour,
                    markerfacecolor=face,
                    markersize=5,
                )
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [label(names[row.name]) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("correlation with the truth (→ better)")
        svg = to_svg(drawn, "credit", alternative)
    found = [row.estimates[name] for row in rows for name in metrics if name in row.estimates]
    size = (
        f", {format_count((one.seeds for one in found), 'seed')}, {format_count((one.prompts for one in found), 'prompt')}"
        if found
        else ""
    )
    circles = " and ".join(f"{mark} {what}" for mark, what in zip(("●", "○"), metrics.values(), strict=False))
    caption = (
        f"Correlation of log π/ref of a token with its true advantage, over held-out responses of the reference: {circles}. Bars: 95% "
        f"intervals for new prompts and new seeds{size}; not tested, not corrected. A policy that gives no credit has 0."
    )
    return Figure("credit", "Token credit", svg, alternative, caption)


def tokens_figure(board: Leaderboard, names: Mapping[str, str], looks: Mapping[str, Look]) -> Figure | None:
    """Draw the true advantage of each token of one response, and the credit that the coloured rows give it."""
    found = {
        row.name: ratios for row in board.rows if row.name in looks and (ratios := _tokens(board, row)) is not None
    }
    if not found:
        return None
    truth = next(iter(found.values()))
    response = _varied(truth)
    here = truth[truth["response"] == response].head(LONGEST)
    lines = [("true advantage", here["advantage"].to_numpy(dtype=float))]
    for name, table in found.items():
        if len(table) == len(truth):
            lines.append((label(names[name]), table.loc[here.index, "log_ratio"].to_numpy(dtype=float)))
    words = [label(word, 12) for word in here["word"]]
    alternative = "Credit of each token. True advantages: " + ", ".join(
        f"{word} {value:+.2f}" for word, value in zip(words, lines[0][1], strict=True)
    )
    with canvas(9.4, 1.1 + 0.26 * len(lines)) as drawn:
        axes = drawn.add_subplot()
        for y, (_, values) in enumerate(lines):
            largest = np.abs(values).max() or 1.0
            for x, value in enumerate(values):
                colour, strength = POSITIVE if value > 0 else NEGATIVE, STRONGEST * abs(value) / largest
                axes.add_patch(Rectangle((x - 0.48, y - 0.45), 0.96, 0.9, color=colour, alpha=strength, linewidth=0))
        axes.axhline(0.5, color=FAINT, linewidth=0.8)
        axes.set_xticks(range(len(words)), words, rotation=45, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(len(lines)), [name for name, _ in lines])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_xlim(-0.5, len(words) - 0.5)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.spines[:].set_visible(False)
        svg = to_svg(drawn, "tokens", alternative)
    seeds = [len(_findings(board, next(row for row in board.rows if row.name == name))) for name in found]
    caption = (
        f"Response {response} of the reference, of all the one whose true advantages vary most. Top line: true advantage, in units of "
        f"reward; below: log π/ref of each variant, mean over {format_count(seeds, 'seed')}. Green is positive, red negative; each line "
        "is scaled by its own largest value. One response is an illustration and no evidence."
    )
    return Figure("tokens", "Who gets the credit in one response", svg, alternative, caption, is_wide=True)


def _section(board: Leaderboard) -> Section | None:
    return next((section for section in board.sections if section.evaluation == "credit"), None)


def _findings(board: Leaderboard, row: Row) -> list:
    section, by_run = _section(board), {cell.run_id: cell for cell in board.cells}
    wanted = section.settings_digest if section else None
    every = [finding for run in row.runs.values() for finding in by_run[run].findings]
    return [one for one in every if one.evaluation == "credit" and one.settings == wanted]


def _tokens(board: Leaderboard, row: Row) -> pd.DataFrame | None:
    """Return the tokens of all responses with the mean over seeds of log_ratio; None where they were not recorded."""
    try:
        tables = [finding.table(TOKENS) for finding in _findings(board, row)]
    except TrackingError:  # of an earlier version
        return None
    if not tables:
        return None
    ratios = np.mean([table["log_ratio"].to_numpy(dtype=float) for table in tables], axis=0)
    return tables[0].assign(log_ratio=ratios)


def _varied(truth: pd.DataFrame) -> int:
    """Return the response whose advantages have the largest standard deviation."""
    sds = truth.groupby("response")["advantage"].std(ddof=0)
    return int(sds.index[int(sds.to_numpy().argmax())])
