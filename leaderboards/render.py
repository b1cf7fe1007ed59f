"""A leaderboard as Markdown to read; `write` puts CSV and JSON beside it."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.export import to_csv, to_json
from plo.leaderboards.formatting import (
    UNDEFINED,
    escape,
    format_difference,
    format_number,
    format_setting,
    format_spread,
    markdown_table,
)
from plo.leaderboards.render_sections import Column, components, detectable, head_to_head, section


def write(board: Leaderboard, folder: str | Path) -> list[Path]:
    """Write leaderboard.md, .csv and .json into a folder, made if it is not there; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for render, ending in ((to_markdown, "md"), (to_csv, "csv"), (to_json, "json")):
        paths.append(folder / f"leaderboard.{ending}")
        paths[-1].write_text(render(board), encoding="utf-8")
    return paths


def to_markdown(board: Leaderboard) -> str:
    """The tables, what must be said under them, and two samples a row."""
    extra = [key for key in next(iter(board.rows)).settings if any(row.settings[key] for row in board.rows)]
    shared = ", ".join(f"{what} `{value[:12]}`" for what, value in board.shared.items())
    base = board.baseline
    parts = [
        "# Leaderboard",
        f"Comparison: {', '.join(map(escape, board.comparisons))}. Shared by all runs: {shared}.",
        "Final evaluation point; mean ± sd over seeds. **Untuned: no rank.** Rows are in order of name.",
    ]
    identity = [("variant", lambda row: escape(row.variant))]
    identity += [(key, lambda row, key=key: format_setting(row.settings[key])) for key in extra]
    identity += [("seeds", lambda row: str(len(row.runs))), ("tuning", lambda row: row.status)]
    columns = list(identity)
    for name in (n for n in board.sample_metrics if board.descriptions[n].table == "reward"):
        columns.append(_metric_column(board, name))
        if name == board.primary_metric and base:
            columns.append(_gap_column(board, name, base))
    parts.append(_show(columns, board.rows))
    if board.notes:
        notes = "\n".join(f"- {escape(note, 1000)}" for note in board.notes)
        parts += ["Of these runs it must be said:", notes]

    short = [("variant", lambda row: escape(board.title(row)))]
    text = [_metric_column(board, n) for n in board.sample_metrics if board.descriptions[n].table != "reward"]
    if text:
        parts += ["## The policy and its text", _show(short + text, board.rows)]
    differing = [n for n in board.sample_metrics if any(n in row.differences for row in board.rows)]
    others = [row for row in board.rows if row.runs]
    if base and differing:
        gaps = [_gap_column(board, name, base) for name in differing]
        parts += [
            f"## Difference to {escape(board.title(base))}",
            "Paired by prompt and seed, [95% interval] for new prompts and new seeds (of one seed: new prompts alone).",
            _show(short + gaps, (row for row in others if row is not base)),
        ]
    for one in board.sections:
        parts += section(one, board, short, others)
    parts += components(board) + head_to_head(board) + _along(board)
    parts += _samples(board)
    parts += ["## Columns", "\n".join(_legend(board))]
    return "\n\n".join(parts) + "\n"


def _metric_column(board: Leaderboard, name: str) -> Column:
    how = board.descriptions[name]
    return escape(f"{how.label} {how.better}".strip()), lambda row: format_spread(row.metrics.get(name), how.digits)


def _gap_column(board: Leaderboard, name: str, base: Row) -> Column:
    how = board.descriptions[name]
    title = f"Δ {escape(how.label)} [95%]{detectable(board, name, how)}"
    return title, lambda row: "baseline" if row is base else format_difference(row.differences.get(name), how.digits)


def _along(board: Leaderboard) -> list[str]:
    points = sorted({p for row in board.rows if len(row.along) > 1 for p in row.along})
    rows = [row for row in board.rows if len(row.along) > 1]
    if not rows:
        return []
    body = []
    for row in rows:
        rewards = [found.get("reward", math.nan) for found in row.along.values()]
        best = max((reward for reward in rewards if not math.isnan(reward)), default=None)
        cells = [_point(row.along.get(point, {}), best) for point in points]
        body.append([escape(board.title(row)), *cells])
    titles = ["variant", *(f"{point:.0%}" for point in points)]
    return [
        "## Along training",
        "Reward (KL), means over seeds, by share of training. Bold: the best point. It was picked on these "
        "very prompts, so it flatters; the tables above are of the last point.",
        markdown_table(titles, body),
    ]


def _point(found: dict[str, float], best: float | None) -> str:
    reward = found.get("reward", math.nan)
    shown = format_number(reward, 3)
    shown = f"**{shown}**" if reward == best else shown
    return f"{shown} ({format_number(found.get('kl', math.nan), 2)})" if found else UNDEFINED


def _samples(board: Leaderboard) -> list[str]:
    rows = [row for row in board.rows if row.samples]
    if not rows:
        return []
    rule = "The first sample of two prompts spread evenly over the held-out ones; ⏎ is a line end."
    parts = ["## Samples", rule]
    for place, (prompt, _) in enumerate(rows[0].samples):
        body = [[escape(board.title(row)), escape(row.samples[place][1], 240)] for row in rows]
        parts += [f"Prompt: {escape(prompt, 240)}", markdown_table(["variant", "continuation"], body)]
    return parts


def _legend(board: Leaderboard) -> list[str]:
    lines = [
        f"- {escape(board.descriptions[n].label)}: {escape(board.descriptions[n].meaning, 400)}."
        for n in board.sample_metrics
    ]
    arrows = "- ↑ more is better, ↓ less is better; without an arrow neither is better by itself."
    tests = (
        "- Δ: difference to the baseline, paired by prompt and seed; its interval is for a new prompt and a new seed, of one "
        "seed for a new prompt alone. p: two-sided, Holm-adjusted over the variants of its column. MDD: minimal detectable "
        "difference, the true one that this design finds (p < .05 after Holm's correction at its strictest) with 80% power; "
        "itself an estimate. Unresolved: Δ smaller than that, or p at least .05; so a true difference as large as the MDD "
        "reads resolved about half the time, one twice as large nearly always. `[-, -]`: one prompt, or no two values that "
        "differ: undefined."
    )
    return [*lines, arrows, tests, f"- `{UNDEFINED}`: undefined or not recorded. One seed has no ±."]


def _show(columns: Sequence[tuple[str, Callable[[Row], str]]], rows: Iterable[Row]) -> str:
    return markdown_table([title for title, _ in columns], ([show(row) for _, show in columns] for row in rows))
