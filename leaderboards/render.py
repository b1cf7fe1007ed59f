"""Render a leaderboard as Markdown; `write` adds CSV and JSON."""

import math
from pathlib import Path

from plo.leaderboards.board import Leaderboard
from plo.leaderboards.export import to_csv, to_json
from plo.leaderboards.formatting import (
    UNDEFINED,
    Column,
    escape,
    format_number,
    markdown_table,
    rows_table,
    setting_column,
)
from plo.leaderboards.render_sections import (
    components_markdown,
    difference_column,
    head_to_head_markdown,
    mean_column,
    section_markdown,
)


def write(board: Leaderboard, folder: str | Path) -> list[Path]:
    """Write leaderboard.md, .csv and .json into a folder, which is created if necessary, and return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for render, ending in ((to_markdown, "md"), (to_csv, "csv"), (to_json, "json")):
        paths.append(folder / f"leaderboard.{ending}")
        paths[-1].write_text(render(board), encoding="utf-8")
    return paths


def to_markdown(board: Leaderboard) -> str:
    """Return the whole leaderboard as Markdown: tables, notes, two samples per row and a legend."""
    extra = [key for key in board.rows[0].settings if any(row.settings[key] for row in board.rows)]
    shared = ", ".join(f"{what} `{value[:12]}`" for what, value in board.shared.items())
    base = board.baseline
    columns: list[Column] = [("variant", lambda row: escape(row.variant))]
    columns += [setting_column(key) for key in extra]
    columns += [("seeds", lambda row: str(len(row.runs))), ("tuning", lambda row: row.status)]
    for name in (n for n in board.sample_metrics if board.descriptions[n].table == "reward"):
        columns.append(mean_column(board, name))
        if name == board.primary_metric and base:
            columns.append(difference_column(board, name))
    parts = [
        "# Leaderboard",
        f"Comparison: {', '.join(map(escape, board.comparisons))}. Shared by all runs: {shared}.",
        "Final evaluation point; mean ± sd over seeds. **Untuned: no rank.** Rows are sorted by name.",
        rows_table(columns, board.rows),
    ]
    if board.notes:
        parts += ["## Notes", "\n".join(f"- {escape(note, 1000)}" for note in board.notes)]

    short: list[Column] = [("variant", lambda row: escape(board.title(row)))]
    text = [mean_column(board, n) for n in board.sample_metrics if board.descriptions[n].table != "reward"]
    if text:
        parts += ["## Policy and text statistics", rows_table(short + text, board.rows)]
    differing = [n for n in board.sample_metrics if any(n in row.differences for row in board.rows)]
    others = [row for row in board.rows if row.runs]
    if base and differing:
        parts += [
            f"## Difference from {escape(board.title(base))}",
            "Paired by prompt and seed; [95% interval] for new prompts and new seeds (with one seed: for new prompts only).",
            rows_table(
                short + [difference_column(board, name) for name in differing],
                (row for row in others if row is not base),
            ),
        ]
    for section in board.sections:
        parts += section_markdown(section, board, short, others)
    parts += components_markdown(board) + head_to_head_markdown(board) + _training_curve(board) + _samples(board)
    return "\n\n".join([*parts, "## Legend", "\n".join(_legend(board))]) + "\n"


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
        "- Δ: difference from the baseline, paired by prompt and seed. Its interval is for a new prompt and a new seed; with "
        "one seed, for a new prompt only.",
        "- p: two-sided, Holm-adjusted over the variants of its column.",
        "- MDD: minimal detectable difference, the true difference that this design finds with 80% power (p < .05 after "
        "Holm's correction at its strictest). The MDD is itself an estimate.",
        "- unresolved: Δ is smaller than the MDD, or p is at least .05. A true difference as large as the MDD is resolved "
        "about half the time, one twice as large nearly always.",
        "- `[-, -]`: undefined, because there is one prompt or no two values differ.",
        f"- `{UNDEFINED}`: undefined or not recorded. One seed has no ±.",
    ]
