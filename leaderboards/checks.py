"""Check that runs may share a table, and write the notes under it."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plo.errors import PloError
from plo.leaderboards.board import Row, title_of
from plo.leaderboards.formatting import fold
from plo.tracking import RecordedCell

COMPARABLE = {"plo.data": "data", "plo.model": "model", "plo.evaluation": "evaluation settings"}

REMEDIES = {
    "plo.data": "the settings of `data`",
    "plo.model": "the settings of `model`, `stages` and `reference`, and the dtype and device,",
    "plo.evaluation": "the settings of `evaluation`",
}


class LeaderboardError(PloError, ValueError):
    """These runs cannot share a table. The message names what differs between which runs, and how to select."""


def check_comparable(cells: Sequence[RecordedCell]) -> dict[str, str]:
    """Return the digests of data, model and evaluation settings that all cells share.

    Raises:
        LeaderboardError: the cells differ in one of them.
    """
    shared = {}
    for tag, what in COMPARABLE.items():
        groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for cell in cells:
            title = f"{cell.comparison} ({cell.comparison_key[:12]})"
            groups[cell.tags.get(tag, "not recorded")][title].append(cell.name)
        if len(groups) > 1:
            lines = []
            for value, comparisons in groups.items():
                where = "; ".join(f"{title}: {_shorten(names)}" for title, names in comparisons.items())
                lines.append(f"  {what} {value[:16]}: {where}")
            raise LeaderboardError(
                f"These runs differ in their {what} (tag {tag}), so their numbers do not compare:\n" + "\n".join(lines) +
                f"\n{remedy(tag)} `plo leaderboard diff A B` lists what differs. For a table of one comparison give its name or "
                f"the beginning of its key: plo leaderboard NAME"
            )  # fmt: skip
        shared[what] = next(iter(groups))
    return shared


def remedy(tag: str) -> str:
    """Return a sentence that says how runs become comparable which differ in a tag of `COMPARABLE`."""
    return f"Run one of them again with {REMEDIES[tag]} of the other."


def incomplete_notes(
    cells: Sequence[RecordedCell], rows: Iterable[Row], missing: Iterable[str], base: Row | None = None
) -> list[str]:
    """Return notes on cells that did not finish or never started, and on seeds that a row lacks.

    Args:
        base: row that has more seeds than the others by design; None: there is none.
    """
    rows = list(rows)
    said = [
        (f"{cell.name} ({cell.comparison}, run {cell.run_id})", ", ".join(filter(None, ("Not finished", cell.status, cell.tags.get("plo.error")))))
        for cell in cells if cell.status != "FINISHED"
    ]  # fmt: skip
    said += [(name, "Planned and never started") for name in missing]
    own = {"reference"} | ({base.loss} if base is not None else set())
    counted = rows if base is None else [row for row in rows if row.loss not in own]
    seeds = sorted({seed for row in counted for seed in row.runs}, key=natural_key)
    for row in rows:
        lacking = [seed for seed in seeds if seed not in row.runs]
        if row.runs and lacking and row.loss != "reference":
            said.append((title_of(row, rows), f"Without seed {', '.join(lacking)}"))
    return fold(said)


def commit_notes(cells: Sequence[RecordedCell]) -> list[str]:
    """Return a note that lists the commits, if the runs were made with different code."""
    parts = {cell.tags.get("plo.git", "none").partition("+") for cell in cells}
    found = sorted(commit[:12] + plus + dirty for commit, plus, dirty in parts)
    return [f"The runs were made at different commits: {', '.join(found)}."] if len(found) > 1 else []


def best_of_notes(rows: Iterable[Row]) -> list[str]:
    """Return a note on rows best_of_n, whose KL is a bound."""
    names = [row.variant for row in rows if row.loss == "best_of_n"]
    what = "the best of n samples of the reference by the task's own reward, without training"
    return [f"{', '.join(names)}: {what}; its KL is the bound log n - (n - 1) / n."] if names else []


def truncation_notes(rows: Iterable[Row], cells: Mapping[str, RecordedCell]) -> list[str]:
    """Return a note on the share of samples of each row that were cut before they ended; they are scored as if complete.

    Args:
        cells: {run id: cell}.
    """
    found: list[str] = []
    for row in rows:
        shares = [cells[run].metrics.get("finished", math.nan) for run in row.runs.values()]
        known = [1 - share for share in shares if not math.isnan(share)]
        if any(known):
            found.append(f"{row.name} {sum(known) / len(known):.1%}")
    return [f"Samples cut before they ended, scored as if complete: {', '.join(found)}."] if found else []


def stage_notes(cells: Sequence[RecordedCell], stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return notes on the stages that ran before the cells: how long they took, and which variants and seeds share them.

    Variants between commas share a stage, those between semicolons have stages of their own.
    """
    variants, seeds = defaultdict(set), defaultdict(set)
    for cell in cells:
        for key in json.loads(cell.tags.get("plo.stages", "[]")):
            variants[key].add(cell.tags.get("plo.variant", cell.name))
            seeds[key].add(cell.tags.get("plo.seed", "-"))
    finished = {stage["key"]: stage for stage in stages if stage["status"] == "FINISHED"}  # each once
    alike: dict[tuple[str, str, bool], list[str]] = defaultdict(list)
    for key, stage in finished.items():
        if key in variants:
            alike[stage["name"], ", ".join(sorted(variants[key])), len(seeds[key]) > 1].append(key)
    folded: dict[tuple[str, str], list[tuple[str, list[str]]]] = defaultdict(list)
    for (name, names, shared), keys in alike.items():
        for_seeds = ", ".join(sorted({seed for key in keys for seed in seeds[key]}, key=natural_key))
        each = f"for each of the seeds {for_seeds} apart" if len(keys) > 1 else f"for seed {for_seeds}"
        how = f"once for seeds {for_seeds} together" if shared else each
        folded[name, how].append((names, keys))
    notes = []
    for (name, how), several in folded.items():
        stages = [finished[key] for _, keys in several for key in keys]
        runs = ", ".join(stage["run_id"][:8] for stage in stages)
        seconds = sum(stage["metrics"].get("seconds", math.nan) for stage in stages)
        of = "; ".join(names for names, _ in several)
        notes.append(f"Stage {name} ran {how}, for {of}: {seconds:.0f} s (run {runs}).")
    return notes


def natural_key(text: str) -> tuple[float, str]:
    """Return a sorting key that puts numbers in numerical order ("2" before "10") and before words."""
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


def _shorten(names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
