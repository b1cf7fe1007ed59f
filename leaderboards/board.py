"""The leaderboard as data: rows, metrics and notes, every number with the runs it came from."""

from dataclasses import dataclass, field

import pandas as pd

from plo.leaderboards.sections import Section
from plo.metric import Metric
from plo.statistics import Difference, Estimate, Ratings, Spread
from plo.tracking import RecordedCell


@dataclass
class Row:
    """A row of a leaderboard: one variant, which is a configured loss with its learning rate, beta and adapter.

    Attributes:
        settings: parameters that identify the row: lr, beta, peft, and any other parameter that varies.
        runs: {seed: run id} of the finished cells behind every number of the row.
        metrics: mean and sd over the seeds at the final evaluation point, by metric.
        values: {metric: {run id: value}}, the values that `metrics` summarises.
        estimates: {metric: mean with an interval for a new prompt and seed}, where values of items were recorded.
        differences: {metric: difference to the baseline's row}, paired by prompt and seed.
        along: {share of training: {metric: mean over seeds}} of reward and KL.
        samples: (prompt, text) of this row's continuations of the board's two sample prompts.
    """

    variant: str
    loss: str
    settings: dict[str, str | None]
    runs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Spread] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    along: dict[float, dict[str, float]] = field(default_factory=dict)
    samples: list[tuple[str, str]] = field(default_factory=list)
    status: str = "untuned"  # the only status until there is a tuning protocol; an untuned row has no rank

    @property
    def name(self) -> str:
        """The variant and its settings, unique in a table."""
        settings = [f"{key}={value}" for key, value in self.settings.items() if value is not None]
        return f"{self.variant} [{', '.join(settings)}]" if settings else self.variant


@dataclass
class Leaderboard:
    """A table of variants: rows in a fixed order (reference, sft, then by name: no rank), and the notes under it.

    Attributes:
        metrics: full names of the metrics, in the order of the columns.
        shared: what all runs have in common: digests of data, model and evaluation settings.
        descriptions: {metric: how it is read and shown}.
        tables: {run id: samples of the final evaluation point} of the cells that recorded them.
    """

    rows: list[Row]
    metrics: list[str]
    baseline: Row | None
    shared: dict[str, str]
    comparisons: list[str]
    notes: list[str]
    cells: list[RecordedCell]
    sections: list[Section] = field(default_factory=list)
    primary_metric: str | None = None
    components: pd.Series | None = None
    ratings: Ratings | None = None
    descriptions: dict[str, Metric] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    def title(self, row: Row) -> str:
        """Return the row's variant, followed by its settings where several rows have that variant."""
        return row.variant if sum(other.variant == row.variant for other in self.rows) == 1 else row.name

    @property
    def sample_metrics(self) -> list[str]:
        """The metrics that belong to no evaluation's section."""
        return [name for name in self.metrics if not any(name in section.metrics for section in self.sections)]

    def is_hidden(self, name: str) -> bool:
        """Return whether the metric comes from a judge that is no better than chance."""
        return any(name in section.metrics and section.is_hidden(name) for section in self.sections)
