"""What may stand in one table, and what must be said of it."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from plo.errors import PloError
from plo.tracking import RecordedCell

COMPARABLE = {"plo.data": "data", "plo.model": "model", "plo.evaluation": "evaluation settings"}


class LeaderboardError(PloError, ValueError):
    """These runs cannot stand in one table. The message says which differ in what, and how to select."""


def comparable(cells: Sequence[RecordedCell]) -> dict[str, str]:
    """What all cells share; refuses to mix what may not be compared."""
    shared = {}
    for tag, what in COMPARABLE.items():
        groups = defaultdict(list)
        for cell in cells:
            groups[cell.tags.get(tag, "not recorded")].append(cell)
        if len(groups) > 1:
            lines = []
            for value, members in groups.items():
                names = defaultdict(list)
                for cell in members:
                    names[f"{cell.comparison} ({cell.comparison_key[:12]})"].append(cell.name)
                where = "; ".join(f"{comparison}: {_few(cells)}" for comparison, cells in names.items())
                lines.append(f"  {what} {value[:16]}: {where}")
            raise LeaderboardError(
                f"These runs differ in their {what}, so their numbers do not compare:\n" + "\n".join(lines) +
                "\nChoose one comparison by its name or the beginning of its key, as in: plo leaderboard NAME"
            )  # fmt: skip
        shared[what] = next(iter(groups))
    return shared


def incomplete(cells: Sequence[RecordedCell], rows: Sequence[Any], missing: list[str]) -> list[str]:
    """Cells that did not finish or never started, and seeds that a row lacks."""
    notes = [
        f"{cell.name} ({cell.comparison}) did not finish: {cell.status}"
        + (f", {cell.tags['plo.error']}" if "plo.error" in cell.tags else "") + f" (run {cell.run_id})."
        for cell in cells if cell.status != "FINISHED"
    ]  # fmt: skip
    notes += [f"{name} was planned and never started." for name in missing]
    seeds = sorted({seed for row in rows for seed in row.runs}, key=natural)
    for row in rows:
        lacking = [seed for seed in seeds if seed not in row.runs]
        if row.runs and lacking and row.loss != "reference":
            notes.append(f"{row.name} lacks seed {', '.join(lacking)}.")
    return notes


def commits(cells: Sequence[RecordedCell]) -> list[str]:
    """That the runs were not all made with the same code."""
    parts = {cell.tags.get("plo.git", "none").partition("+") for cell in cells}
    found = sorted(commit[:12] + plus + dirty for commit, plus, dirty in parts)
    return [f"The runs were made at different commits: {', '.join(found)}."] if len(found) > 1 else []


def natural(text: str) -> tuple[float, str]:
    """Sorts numbers as numbers ("2" before "10") and before words."""
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


def _few(names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def made_first(cells: Sequence[RecordedCell], stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was trained or computed before the cells could run, how long it took, and which variants owe to it."""
    owing: dict[str, list[str]] = {}
    for cell in cells:
        for key in json.loads(cell.tags.get("plo.stages", "[]")):
            owing.setdefault(key, []).append(cell.tags.get("plo.variant", cell.name))
    finished = {stage["key"]: stage for stage in stages if stage["status"] == "FINISHED"}  # each once
    return [
        f"{stage['name']} was made first, once, in {stage['metrics'].get('seconds', math.nan):.0f} s "
        f"(run {stage['run_id'][:8]}), for: {', '.join(sorted(set(owing[stage['key']])))}."
        for key, stage in finished.items()
        if key in owing
    ]
