"""What an evaluation of level "model" returns."""

from dataclasses import dataclass, field

import pandas as pd


@dataclass(frozen=True)
class Findings:
    """What an evaluation of level "model" found.

    Attributes:
        metrics: by name; recorded as `<evaluation>.<name>`. Rates are shares in [0, 1].
        items: one row an item, with `prompt_id` and, for every metric that is a mean over items, a column of its name:
            paired tests and intervals read it. Recorded as the table `<evaluation>.json`.
        notes: what must be said beside the numbers, a sentence each.
        tables: further tables to record, by file name.
        files: further texts to record, by file name (an official format).
        lengths: for a win rate among the metrics, the columns of `items` with the length of the subject's text and of
            the opponent's: the leaderboard shows the length-adjusted rate beside it, fitted to all cells at once.
    """

    metrics: dict[str, float]
    items: pd.DataFrame
    notes: tuple[str, ...] = ()
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, tuple[str, str]] = field(default_factory=dict)
