"""Values of single items, by prompt and seed, as the cells recorded them, and their differences to the baseline's."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from plo.leaderboards.sections import Section
from plo.statistics import differences
from plo.tracking import RecordedCell, allowed_name
from plo.tracking import tables as fetch

SAMPLES = "samples.json"


def tables(cells: Sequence[RecordedCell], notes: list[str]) -> dict[str, pd.DataFrame]:
    """{run id: its samples}, columns by the names that metrics are recorded by; a cell that recorded none is noted.

    Raises:
        TrackingError: a cell recorded samples, and they are not where the store expects them.
    """
    recorded = [cell for cell in cells if cell.has_table(SAMPLES)]
    notes += [
        f"{cell.name} ({cell.run_id}) has no table {SAMPLES}: no part in differences."
        for cell in cells
        if cell not in recorded
    ]
    found = fetch(recorded, SAMPLES)
    return {run: frame.rename(columns=allowed_name) for run, frame in found.items()}


def items(
    rows: Sequence[Any], metrics: list[str], samples: Mapping[str, pd.DataFrame], sections: Sequence[Section]
) -> dict[str, dict[str, pd.DataFrame]]:
    """{metric: {row: [prompts, seeds]}}, mean over a prompt's samples, of the metrics whose items were recorded."""
    of_sections = {name: by_run for section in sections for name, by_run in section.items.items()}
    found = {}
    for name in metrics:
        if name not in of_sections:
            of_sections[name] = {
                run: frame[name].astype(float).groupby(frame["prompt_id"]).mean()
                for run, frame in samples.items()
                if name in frame
            }
        by_run = of_sections[name]
        for row in rows:
            if by_seed := {seed: by_run[run] for seed, run in row.runs.items() if run in by_run}:
                found.setdefault(name, {})[row.name] = pd.DataFrame(by_seed)
    return found


def row_differences(
    rows: Sequence[Any],
    base: Any,
    items: Mapping[str, Mapping[str, pd.DataFrame]],
    bounds: Mapping[str, tuple[float, float]],
    notes: list[str],
) -> None:
    """Set every row's differences to the baseline's row; notes what could not be compared.

    Args:
        bounds: the least and the greatest value of each metric.
    """
    said: dict[str, None] = {}  # once, whatever the number of metrics
    for name, of_row in items.items():
        if base.name not in of_row:
            continue
        theirs, comparable = of_row[base.name], {}
        for row in rows:
            if row is base or row.name not in of_row:
                continue
            table = of_row[row.name]
            seeds = [seed for seed in table if seed in theirs]
            if not seeds or table.index.intersection(theirs.index).empty:
                lacking = "prompt" if seeds else "seed"
                said[f"{row.name}: no {lacking} in common with {base.name}, so no difference."] = None
            else:
                comparable[row.name] = table
        found = differences(comparable, theirs, bounds=bounds[name])
        for row in rows:
            if row.name not in found:
                continue
            gap = row.differences[name] = found[row.name]
            if gap.dropped and gap.prompts:
                said[
                    f"{row.name}: only the {gap.prompts} prompts that it shares with {base.name} in every seed count."
                ] = None
            if gap.seeds == 1:
                said[
                    f"{row.name}: one seed in common with {base.name}, so its difference is for new prompts alone."
                ] = None
    notes += said
