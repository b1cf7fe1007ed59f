"""Values of single prompts, by prompt and seed."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from plo.leaderboards.board import Row
from plo.leaderboards.formatting import fold
from plo.leaderboards.sections import Section
from plo.tracking import RecordedCell, allowed_name, tables

SAMPLES = "samples.json"


def fetch_samples(cells: Sequence[RecordedCell], notes: list[str]) -> dict[str, pd.DataFrame]:
    """Return {run id: its samples}, with metrics' recorded names as columns; append a note for a cell without samples.

    Raises:
        TrackingError: a cell recorded samples, and the store does not have them any more.
    """
    recorded = [cell for cell in cells if cell.has_table(SAMPLES)]
    lacking = [cell for cell in cells if cell not in recorded]
    notes += fold(
        (f"{one.name} ({one.run_id})", f"Without a table {SAMPLES}, so without a part in differences")
        for one in lacking
    )
    return {
        run: frame.set_axis([allowed_name(name) for name in frame], axis="columns")
        for run, frame in tables(recorded, SAMPLES).items()
    }


def values_by_prompt(
    rows: Sequence[Row], metrics: Sequence[str], samples: Mapping[str, pd.DataFrame], sections: Sequence[Section]
) -> dict[str, dict[str, pd.DataFrame]]:
    """Return {metric: {row: [prompts, seeds]}}, averaged over a prompt's samples, for metrics with recorded items."""
    by_metric = {name: by_run for section in sections for name, by_run in section.items.items()}
    means = {run: _by_prompt(frame, metrics) for run, frame in samples.items()}
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for name in metrics:
        by_run = by_metric.get(name)
        if by_run is None:
            by_run = {run: frame[name] for run, frame in means.items() if name in frame}
        for row in rows:
            if by_seed := {seed: by_run[run] for seed, run in row.runs.items() if run in by_run}:
                found.setdefault(name, {})[row.name] = pd.DataFrame(by_seed)
    return found


def _by_prompt(samples: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return the means of metrics over each prompt's samples: one pass for all metrics, of which there may be many."""
    columns = [name for name in metrics if name in samples]
    values, prompts = samples[columns].to_numpy(dtype=float), samples["prompt_id"].to_numpy()
    if not len(prompts) or (prompts[1:] < prompts[:-1]).any() or np.isnan(values).any():
        return samples[columns].astype(float).groupby(samples["prompt_id"]).mean()
    # Recorded tables are sorted by prompt. Grouping them again would be a third of the time of a large leaderboard.
    starts = np.flatnonzero(np.r_[True, prompts[1:] != prompts[:-1]])
    counts = np.diff(np.r_[starts, len(prompts)])
    means = np.add.reduceat(values, starts) / counts[:, None]
    return pd.DataFrame(means, pd.Index(prompts[starts], name="prompt_id"), columns)
