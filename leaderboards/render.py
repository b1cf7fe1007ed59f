"""Render a leaderboard as Markdown; `write` adds CSV and JSON."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from plo import store
from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.columns import PAIRS, difference_column, first_columns, matched_columns, spread_column
from plo.leaderboards.export import to_csv, to_json
from plo.leaderboards.formatting import (
    UNDEFINED,
    Column,
    escape,
    format_number,
    format_spread,
    markdown_table,
    rows_table,
    setting_column,
)
from plo.leaderboards.headline import design_lines, headline
from plo.leaderboards.render_sections import components_markdown, section_markdown
from plo.leaderboards.tuning import EXPLAINED, tuning_columns


def write(board: Leaderboard, folder: str | Path) -> list[Path]:
    """Write leaderboard.md, .csv and .json into a folder, which is created if necessary, and return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for render, ending in ((to_markdown, "md"), (to_csv, "csv"), (to_json, "json")):
        paths.append(folder / f"leaderboard.{ending}")
        store.write_text(paths[-1], render(board))
    return paths


def to_markdown(board: Leaderboard) -> str:
    """Return the whole leaderboard as Markdown: verdicts, notes, secondary metrics, tuning, two samples per row, a legend."""
    shared = ", ".join(f"{what} `{value[:12]}`" for what, value in board.shared.items())
    short: list[Column] = [("variant", lambda row: escape(board.title(row)))]
    untuned = " **Untuned: no rank.**" if all(row.tuning is None for row in board.rows) else ""
    parts = [
        "# Leaderboard",
        f"**{escape(headline(board), 2000)}**",
        f"Comparison: {', '.join(map(escape, board.comparisons))}. Shared by all runs: {shared}.",
        *([_bullets(design_lines(board))] if board.design else []),
        f"Final evaluation point; mean and difference with [95% interval] for new prompts and seeds.{untuned}",
        rows_table(short + [_inert(*column) for column in first_columns(board)], board.rows),
    ]
    if board.notes:
        parts += ["## Notes", _bullets(board.notes)]
    parts += _secondary(board, short)
    others = [row for row in board.rows if row.runs]
    for section in board.sections:
        parts += section_markdown(section, board, short, others)
    parts += (
        _matched(board, short)
        + _fixed_length(board, short)
        + _tuning(board, short)
        + _settings(board, short)
        + components_markdown(board)
    )
    parts += _training_curve(board) + _samples(board)
    return "\n\n".join([*parts, "## Legend", "\n".join(_legend(board))]) + "\n"


def _inert(title: str, text: Callable[[Row], str]) -> Column:
    return escape(title), (lambda row: escape(text(row))) if title == PAIRS else text


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line, 1000)}" for line in lines)


def _secondary(board: Leaderboard, short: Sequence[Column]) -> list[str]:
    """Return the tables of the metrics of samples but the primary one: means, and differences without tests."""
    names = [name for name in board.sample_metrics if name != board.primary_metric]
    if not names:
        return []
    differing = [name for name in names if any(name in row.differences for row in board.rows)]
    means = [(escape(title), text) for title, text in (spread_column(board, n) for n in names)]
    parts = ["## Secondary, not corrected", rows_table([*short, *means], board.rows)]
    if board.baseline and differing:
        rows = [row for row in board.rows if row.runs and row is not board.baseline]
        columns = [(escape(title), text) for title, text in (difference_column(board, n) for n in differing)]
        base = escape(board.title(board.baseline))
        parts += [
            f"Difference from {base} with [95% interval]. Nothing is tested: of twenty such intervals about one misses the truth.",
            rows_table([*short, *columns], rows),
        ]
    return parts


def _matched(board: Leaderboard, short: Sequence[Column]) -> list[str]:
    """Return the section on reward at matched KL; empty where the points of training were not recorded."""
    if (found := board.matched) is None:
        return []

    rows, columns = matched_columns(board, found)
    return [
        "## Reward at matched KL",
        "Interpolated between evaluation points for each prompt and seed, with [95% interval]; secondary, not corrected. Rows that "
        "are not listed moved less far from the reference.",
        rows_table([*short, *columns], rows),
    ]


def _fixed_length(board: Leaderboard, short: Sequence[Column]) -> list[str]:
    """Return the section on diversity at one length; empty where fewer than two rows have samples."""
    if (found := board.fixed_length) is None:
        return []
    rows = [row for row in board.rows if row.name in found.distinct]
    column = f"distinct-{found.n} of {found.words} words ↑", lambda row: format_spread(found.distinct[row.name], 3)
    return [
        "## Diversity at one length",
        f"Unique / all {found.n}-grams over each seed's samples, cut to their first {found.words} words; of the {found.prompts} "
        "prompts whose samples are as long in every row and seed. Uncut, diversity falls with length alone.",
        rows_table([*short, column], rows),
    ]


def _tuning(board: Leaderboard, short: Sequence[Column]) -> list[str]:
    rows = [row for row in board.rows if row.tuning]
    if not rows:
        return []
    columns = [(escape(title), lambda row, text=text: escape(text(row))) for title, text in tuning_columns(board)]
    return ["## Tuning", EXPLAINED, rows_table([*short, *columns], rows)]


def _settings(board: Leaderboard, short: Sequence[Column]) -> list[str]:
    keys = [key for key in board.rows[0].settings if any(row.settings[key] for row in board.rows)]
    columns = [setting_column(key) for key in keys]
    return ["## Settings", rows_table([*short, *columns], board.rows)] if columns else []


def _training_curve(board: Leaderboard) -> list[str]:
    rows = [row for row in board.rows if len(row.along) > 1]
    if not rows:
        return []
    points = sorted({point for row in rows for point in row.along})
    body = []
    for row in rows:
        rewards = [found.get("reward", math.nan) for found in row.along.values()]
        best = max((reward for reward in rewards if not math.isnan(reward)), default=None)
        body.append([escape(board.title(row)), *(_curve_cell(row.along.get(point, {}), best) for point in points)])
    return [
        "## Reward and KL during training",
        "Reward (KL), means over seeds, by share of training. Bold: the best point. It was selected on these same "
        "prompts and is therefore optimistic; the tables above show the last point.",
        markdown_table(["variant", *(f"{point:.0%}" for point in points)], body),
    ]


def _curve_cell(found: dict[str, float], best: float | None) -> str:
    reward = found.get("reward", math.nan)
    text = format_number(reward, 3)
    text = f"**{text}**" if reward == best else text
    return f"{text} ({format_number(found.get('kl', math.nan), 2)})" if found else UNDEFINED


def _samples(board: Leaderboard) -> list[str]:
    rows = [row for row in board.rows if row.samples]
    if not rows:
        return []
    parts = [
        "## Samples",
        "The first sample of two prompts, spread evenly over the held-out prompts. ⏎ marks a line break.",
    ]
    for place, (prompt, _) in enumerate(rows[0].samples):
        body = [[escape(board.title(row)), escape(row.samples[place][1], 240)] for row in rows]
        parts += [f"Prompt: {escape(prompt, 240)}", markdown_table(["variant", "continuation"], body)]
    return parts


def _legend(board: Leaderboard) -> list[str]:
    metrics = [board.descriptions[name] for name in board.sample_metrics]
    return [
        *(f"- {escape(metric.label)}: {escape(metric.meaning, 400)}." for metric in metrics),
        "- ↑: higher is better. ↓: lower is better. No arrow: neither direction is better by itself.",
        "- Δ: difference from the baseline, over common prompts, with a 95% interval for a new prompt and a new seed; with one "
        "seed, for a new prompt only.",
        "- better, worse: the difference in the primary metric is significant after Holm's correction for the number of variants. "
        "equivalent: both one-sided tests place it within the margin. undecided: neither; more seeds or prompts may tell.",
        "- rank: by mean among the rows that were tuned alike; in brackets the ranks that tests of all pairs leave, with Holm's "
        "correction.",
        "- `[-, -]`: undefined, because there is one prompt or no two values differ.",
        f"- `{UNDEFINED}`: undefined or not recorded. One seed has no ±.",
    ]
