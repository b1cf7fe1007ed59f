"""The result of an evaluation of level "model"."""

from dataclasses import dataclass, field

import pandas as pd


@dataclass(frozen=True)
class Findings:
    """Result of an evaluation of level "model".

    Attributes:
        metrics: values by name, recorded as `<evaluation>.<name>`. Rates are shares in [0, 1].
        items: one row per item, with `prompt_id` and, for every metric that is a mean over items, a column of its name, from
            which paired tests and intervals are computed. It is recorded as the table `<evaluation>.json`.
        notes: sentences to show with the numbers.
        tables: further tables to record, by file name.
        files: further texts to record, by file name (an official format).
        lengths: for a win rate among the metrics, the columns of `items` with the lengths of the subject's and the
            opponent's text; the leaderboard then adds the length-adjusted rate, fitted to all cells at once.
        curves: {step of the training: metrics}, for an evaluation that has values along training.
    """

    metrics: dict[str, float]
    items: pd.DataFrame
    notes: tuple[str, ...] = ()
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, tuple[str, str]] = field(default_factory=dict)
    curves: dict[int, dict[str, float]] = field(default_factory=dict)


def means(items: pd.DataFrame) -> dict[str, float]:
    """Return the mean of each column over the rows where it is defined."""
    return {str(name): float(mean) for name, mean in items.mean().items()}
