"""Values of single prompts, by prompt and seed, and differences to the baseline that are made of them."""

from collections.abc import Mapping, Sequence

import pandas as pd

from plo.leaderboards.board import Row
from plo.leaderboards.sections import Section
from plo.statistics import differences
from plo.tracking import RecordedCell, allowed_name, tables

SAMPLES = "samples.json"


def fetch_samples(cells: Sequence[RecordedCell], notes: list[str]) -> dict[str, pd.DataFrame]:
    """Return {run id: its samples}, with metrics' recorded names as columns; append a note for a cell without samples.

    Raises:
        TrackingError: a cell recorded samples, and the store does not have them any more.
    """
    recorded = [cell for cell in cells if cell.has_table(SAMPLES)]
    notes += [
        f"{cell.name} ({cell.run_id}) has no table {SAMPLES}, so it has no part in differences."
        for cell in cells
        if cell not in recorded
    ]
    return {run: frame.rename(columns=allowed_name) for run, frame in tables(recorded, SAMPLES).items()}


def values_by_prompt(
    rows: Sequence[Row], metrics: Sequence[str], samples: Mapping[str, pd.DataFrame], sections: Sequence[Section]
) -> dict[str, dict[str, pd.DataFrame]]:
    """Return {metric: {row: [prompts, seeds]}}, averaged over a prompt's samples, for metrics with recorded items."""
    by_metric = {name: by_run for section in sections for name, by_run in section.items.items()}
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for name in metrics:
        by_run = by_metric.get(name)
        if by_run is None:
            by_run = {
                run: frame[name].astype(float).groupby(frame["prompt_id"]).mean()
                for run, frame in samples.items()
                if name in frame
            }
        for row in rows:
            if by_seed := {seed: by_run[run] for seed, run in row.runs.items() if run in by_run}:
                found.setdefault(name, {})[row.name] = pd.DataFrame(by_seed)
    return found


def set_differences(
    rows: Sequence[Row],
    base: Row,
    items: Mapping[str, Mapping[str, pd.DataFrame]],
    bounds: Mapping[str, tuple[float, float]],
    notes: list[str],
) -> None:
    """Set every row's differences to the baseline `base`; append to `notes` what could not be compared.

    Args:
        items: the result of `values_by_prompt`.
        bounds: least and greatest value of each metric.
    """
    found_notes: dict[str, None] = {}  # ordered and without repetition, whatever the number of metrics
    by_name = {row.name: row for row in rows}
    for name, by_row in items.items():
        if base.name not in by_row:
            continue
        theirs, comparable = by_row[base.name], {}
        for own, table in by_row.items():
            seeds = [seed for seed in table if seed in theirs]
            if own == base.name:
                continue
            if not seeds or table.index.intersection(theirs.index).empty:
                lacking = "prompt" if seeds else "seed"
                found_notes[f"{own}: no {lacking} in common with {base.name}, so no difference."] = None
            else:
                comparable[own] = table
        for own, gap in differences(comparable, theirs, bounds=bounds[name]).items():
            by_name[own].differences[name] = gap
            if gap.dropped and gap.prompts:
                note = f"only the {gap.prompts} prompts that it shares with {base.name} in every seed count."
                found_notes[f"{own}: {note}"] = None
            if gap.seeds == 1:
                note = f"one seed in common with {base.name}, so its difference is for new prompts alone."
                found_notes[f"{own}: {note}"] = None
    notes += found_notes
