"""A leaderboard as Markdown to read, CSV to compute with, and JSON that traces every number to its runs."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plo.leaderboards.metrics import metric
from plo.leaderboards.table import Leaderboard, Row
from plo.statistics import Difference, Spread

UNDEFINED = "-"


def write(board: Leaderboard, folder: str | Path) -> list[Path]:
    """Write leaderboard.md, .csv and .json into a folder, made if it is not there; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for render, ending in ((to_markdown, "md"), (to_csv, "csv"), (to_json, "json")):
        paths.append(folder / f"leaderboard.{ending}")
        paths[-1].write_text(render(board), encoding="utf-8")
    return paths


# --- Markdown ------------------------------------------------------------------------------------------


def to_markdown(board: Leaderboard) -> str:
    """The tables, what must be said under them, and two samples a row."""
    extra = [key for key in next(iter(board.rows)).settings if any(row.settings[key] for row in board.rows)]
    shared = ", ".join(f"{what} `{value[:12]}`" for what, value in board.settings.items())
    base = board.baseline
    parts = [
        "# Leaderboard",
        f"Comparison: {', '.join(map(escape, board.comparisons))}. Shared by all runs: {shared}.",
        "Final evaluation point; mean ± sd over seeds. **Untuned: no rank.** Rows are in order of name.",
    ]
    identity = [("variant", lambda row: escape(row.variant))]
    identity += [(key, lambda row, key=key: _setting(row.settings[key])) for key in extra]
    identity += [("seeds", lambda row: str(len(row.runs))), ("tuning", lambda row: row.status)]
    columns = list(identity)
    for name in (n for n in board.metrics if metric(n).table == "reward"):
        columns.append(_metric_column(name))
        if name == "reward" and base:
            columns.append(("Δ reward [95%]", lambda row: _difference(row, "reward", base)))
    parts.append(_show(columns, board.rows))
    if board.notes:
        notes = "\n".join(f"- {escape(note, 1000)}" for note in board.notes)
        parts += ["Of these runs it must be said:", notes]

    short = [("variant", lambda row: escape(_short(row, board)))]
    text = [_metric_column(n) for n in board.metrics if metric(n).table != "reward"]
    if text:
        parts += ["## The policy and its text", _show(short + text, board.rows)]
    differing = [n for n in board.metrics if any(n in row.differences for row in board.rows)]
    if base and differing:
        gaps = [(f"Δ {metric(n).label}", lambda row, n=n: _difference(row, n, base)) for n in differing]
        others = [row for row in board.rows if row is not base and row.runs]
        parts += [
            f"## Difference to {escape(_short(base, board))}",
            "Paired by prompt and seed, [95% interval] for new prompts and new seeds (of one seed: new prompts alone).",
            _show(short + gaps, others),
        ]
    parts += _along(board)
    parts += _samples(board)
    parts += ["## Columns", "\n".join(_legend(board))]
    return "\n\n".join(parts) + "\n"


def _metric_column(name: str) -> tuple[str, Callable[[Row], str]]:
    how = metric(name)
    return f"{how.label} {how.better}".strip(), lambda row: _spread(row.metrics.get(name), how.digits)


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
        body.append([escape(_short(row, board)), *cells])
    titles = ["variant", *(f"{point:.0%}" for point in points)]
    return [
        "## Along training",
        "Reward (KL), means over seeds, by share of training. Bold: the best point. It was picked on these "
        "very prompts, so it flatters; the tables above are of the last point.",
        _table(titles, body),
    ]


def _point(found: dict[str, float], best: float | None) -> str:
    reward = found.get("reward", math.nan)
    shown = _number(reward, 3)
    shown = f"**{shown}**" if reward == best else shown
    return f"{shown} ({_number(found.get('kl', math.nan), 2)})" if found else UNDEFINED


def _samples(board: Leaderboard) -> list[str]:
    rows = [row for row in board.rows if row.samples]
    if not rows:
        return []
    rule = "The first sample of two prompts spread evenly over the held-out ones; ⏎ is a line end."
    parts = ["## Samples", rule]
    for number, (prompt, _) in enumerate(rows[0].samples):
        body = [[escape(_short(row, board)), escape(row.samples[number][1], 240)] for row in rows]
        parts += [f"Prompt: {escape(prompt, 240)}", _table(["variant", "continuation"], body)]
    return parts


def _legend(board: Leaderboard) -> list[str]:
    lines = [f"- {metric(n).label}: {metric(n).meaning}." for n in board.metrics]
    arrows = "- ↑ more is better, ↓ less is better; without an arrow neither is better by itself."
    return [*lines, arrows, f"- `{UNDEFINED}`: undefined or not recorded. One seed has no ±."]


def _show(columns: Sequence[tuple[str, Callable[[Row], str]]], rows: Iterable[Row]) -> str:
    return _table([title for title, _ in columns], ([show(row) for _, show in columns] for row in rows))


def _table(titles: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(row: Row, board: Leaderboard) -> str:
    """The variant alone where that is unique, else with its settings."""
    return row.variant if sum(other.variant == row.variant for other in board.rows) == 1 else row.name


def _setting(value: str | None) -> str:
    try:
        return UNDEFINED if value is None else f"{float(value):g}"
    except ValueError:
        return escape(value)


def _number(value: float, digits: int, sign: str = "") -> str:
    return UNDEFINED if math.isnan(value) else f"{value:{sign}.{digits}f}"


def _spread(found: Spread | None, digits: int) -> str:
    if found is None or math.isnan(found.mean):
        return UNDEFINED
    sd = "" if math.isnan(found.sd) else f" ± {found.sd:.{digits}f}"
    return _number(found.mean, digits) + sd


def _difference(row: Row, name: str, base: Row) -> str:
    found, digits = row.differences.get(name), metric(name).digits
    if row is base:
        return "baseline"
    if found is None or math.isnan(found.mean):
        return UNDEFINED
    low, high = (_number(value, digits, "+") for value in (found.low, found.high))
    return f"{_number(found.mean, digits, '+')} [{low}, {high}]"


_ENTITIES = {character: f"&#{ord(character)};" for character in "&<>|`\\"}
_ESCAPES = {character: f"\\{character}" for character in "*[]~$#"}


def escape(text: str, limit: int = 160) -> str:
    """Any text as one line of Markdown that stays where it is put: in a table cell, a list item, a heading.

    Shortened to `limit` characters; line ends become ⏎, other control and invisible characters �. What could
    open a cell, a tag, a code span or an escape becomes a numeric entity, which Markdown never reads as
    structure; what could emphasise or link is escaped. A "_" within a word does nothing and stays legible.
    """
    text = str(text)
    more = f" … ({len(text) - limit} more characters)" if len(text) > limit else ""
    text = re.sub(r"\r\n|[\n\r\v\f\x85\u2028\u2029]", " ⏎ ", text[:limit]).replace("\t", " ")
    text = "".join(c if c.isprintable() else "�" for c in text).strip()
    text = "".join(_ENTITIES.get(c) or _ESCAPES.get(c, c) for c in text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text).replace("://", "&#58;//")
    return text + more


# --- CSV and JSON --------------------------------------------------------------------------------------


def to_csv(board: Leaderboard) -> str:
    """One line a row: settings, seeds, run ids, each metric's mean, sd, difference and interval, exactly."""
    lines = []
    for row in board.rows:
        line: dict[str, Any] = {"variant": row.variant, "loss": row.loss, **row.settings}
        line["status"] = row.status
        line |= {"seeds": " ".join(row.runs), "runs": " ".join(row.runs.values())}
        for name in board.metrics:
            found, gap = row.metrics.get(name), row.differences.get(name)
            line |= {name: found and found.mean, f"{name}_sd": found and found.sd}
            if any(name in other.differences for other in board.rows):
                ends = ("mean", "low", "high")
                line |= {f"{name}_difference_{end}": gap and getattr(gap, end) for end in ends}
        lines.append(line)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_finite(line) for line in lines)  # None is written as nothing
    return out.getvalue()


def to_json(board: Leaderboard) -> str:
    """Everything, in full precision; each mean with the value of each run behind it, by run id."""
    rows = [_row_data(row, board) for row in board.rows]
    data = {
        "comparisons": board.comparisons, "shared": board.settings, "metrics": board.metrics,
        "baseline": board.baseline and board.baseline.name, "rows": rows, "notes": board.notes,
    }  # fmt: skip
    return json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _row_data(row: Row, board: Leaderboard) -> dict[str, Any]:
    base_runs = list(board.baseline.runs.values()) if board.baseline else []

    def difference(gap: Difference) -> dict[str, Any]:
        return asdict(gap) | {"runs": list(row.runs.values()), "baseline_runs": base_runs}

    return {
        "name": row.name, "variant": row.variant, "loss": row.loss, "settings": row.settings,
        "status": row.status, "runs": row.runs,
        "metrics": {name: asdict(s) | {"values": row.values[name]} for name, s in row.metrics.items()},
        "differences": {name: difference(gap) for name, gap in row.differences.items()},
        "along": [{"point": point, **found} for point, found in row.along.items()],
        "samples": [{"prompt": prompt, "text": text} for prompt, text in row.samples],
    }  # fmt: skip


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
