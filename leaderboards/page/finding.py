"""The finding in one sentence, and what a reader needs to know of how sure it is."""

import math
from collections.abc import Mapping, Sequence

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.columns import label as metric_label
from plo.leaderboards.formatting import format_count, format_interval, format_number
from plo.leaderboards.headline import headline
from plo.leaderboards.page.text import NAME, capital, visible
from plo.values import without_paths

LISTED = 3  # variants that the sentence names
UNTUNED = "Nothing was tuned: settings that suit some losses better than others may decide, so this is no ranking."


def finding(board: Leaderboard, names: Mapping[str, str]) -> str:
    """Return a sentence that says which variants are better than the baseline and by how much, and counts the others."""
    name, base = board.primary_metric, board.baseline
    judged = [row for row in board.rows if row.verdict]
    if name is None or base is None or not judged or board.is_hidden(name):
        return visible(headline(board))
    metric, what = board.descriptions[name], f"{visible(names[base.name], NAME)} in {metric_label(board, name)}"
    judged.sort(key=lambda row: row.differences[name].mean, reverse=metric.better != "↓")

    def listed(rows: Sequence[Row]) -> str:
        said = []
        for row in rows[:LISTED]:
            gap = row.differences[name]
            interval = "" if math.isnan(gap.low) else f" {format_interval(gap, metric.digits, '+')}"
            said.append(
                f"{visible(names[row.name], NAME)} (by {format_number(gap.mean, metric.digits, '+')}{interval})"
            )
        return _joined([*said, *([f"{len(rows) - LISTED} more"] if len(rows) > LISTED else [])])

    counted = []
    for word in ("equivalent", "undecided", "worse"):
        if rows := [row for row in judged if row.verdict == word]:
            who = _joined([visible(names[row.name], NAME) for row in rows]) if len(rows) <= LISTED else str(len(rows))
            counted.append(f"{who} {'is' if len(rows) == 1 else 'are'} {word}")
    better = [row for row in judged if row.verdict == "better"]
    if better:
        rest = f"; {_joined(counted)}" if counted else ""
        return f"{listed(better)} {'is' if len(better) == 1 else 'are'} better than {what}{rest}."
    if len(judged) == 1:
        return f"{visible(names[judged[0].name], NAME)} is not better than {what}: it is {judged[0].verdict}."
    return f"No variant of {len(judged)} is better than {what}: {_joined(counted)}."


def task(board: Leaderboard) -> str:
    """Return the data and the model of the comparisons in the table; "" where they are not recorded."""
    found = []
    for one in board.recorded:
        config = one.config()
        data, model = ((config.get(part) or {}) for part in ("data", "model"))
        named = {"Data": data.get("source") or data.get("path"), "Model": model.get("name")}
        found += [f"{what}: {visible(without_paths(str(name)), NAME)}." for what, name in named.items() if name]
    return " ".join(dict.fromkeys(found))


def certainty(board: Leaderboard, names: Mapping[str, str]) -> list[str]:
    """Return sentences on what the numbers of the finding mean; empty where nothing was tested."""
    name, base, design = board.primary_metric, board.baseline, board.design
    if name is None or base is None or design is None:
        return []
    compared, metric = design.judgement.compared.values(), board.descriptions[name]
    seeds, prompts = (format_count([getattr(one, f"{key}s") for one in compared], key) for key in ("seed", "prompt"))
    scope = "new prompts and new seeds" if seeds != "1 seed" else "new prompts and this seed alone"
    arrow = {"↑": "Higher is better", "↓": "Lower is better"}.get(metric.better, "")
    margin = (
        f"Equivalent: the difference is shown to be within ±{design.margin:g}."
        if design.margin is not None
        else "No margin of equivalence was declared, so no variant can be called equivalent."
    )
    return [
        f"{capital(metric_label(board, name))}: {visible(metric.meaning, 400)}. {arrow}.",
        f"Brackets are 95% intervals for {scope}, from {seeds} and {prompts}.",
        f"Verdicts are corrected for testing {len(compared)} variants (Holm, level {design.judgement.alpha:g}). {margin} "
        "Undecided: the data do not tell.",
        *([] if any(row.tuning for row in board.rows) else [UNTUNED]),
    ]


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
