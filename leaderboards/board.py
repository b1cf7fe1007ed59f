"""The leaderboard as data: rows, metrics, verdicts and notes, every number with the runs it came from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from plo import statistics
from plo.leaderboards.sections import Section
from plo.metric import Metric
from plo.statistics import Estimate, Fragility, Judgement, Pool, Spread, Verdict
from plo.tracking import Comparison, RecordedCell


class Rank(NamedTuple):
    """Rank of a row by its mean (1 is best), and the ranks from `low` to `high` that tests of all pairs of rows leave."""

    rank: int
    low: int
    high: int


@dataclass
class Row:
    """A row of a leaderboard: one variant, which is a configured loss with its learning rate, beta and adapter.

    Attributes:
        settings: parameters that identify the row: lr, beta, peft, and any other parameter that varies.
        runs: {seed: run id} of the finished cells behind every number of the row.
        metrics: mean and sd over the seeds at the final evaluation point, by metric.
        values: {metric: {run id: value}}, the values that `metrics` summarises.
        estimates: {metric: mean with an interval for a new prompt and seed}, where values of items were recorded.
        differences: {metric: difference to the baseline's row}.
        verdict: what the difference in the primary metric shows; None for a row that is not tested.
        rank: rank by the primary metric among the rows that were tuned alike; None for any other row.
        tuning: record of the variant's tuning; None: untuned.
        pairs: name of its training pairs; "" where all rows have those of the data source.
        is_ceiling: True if the loss reads the truth of its task: the row is shown, and neither tested nor ranked.
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
    differences: dict[str, statistics.Comparison] = field(default_factory=dict)
    verdict: Verdict | None = None
    rank: Rank | None = None
    tuning: Mapping[str, Any] | None = None
    is_ceiling: bool = False
    pairs: str = ""
    along: dict[float, dict[str, float]] = field(default_factory=dict)
    samples: list[tuple[str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The variant and its settings, unique in a table."""
        settings = [f"{key}={value}" for key, value in self.settings.items() if value is not None]
        return f"{self.variant} [{', '.join(settings)}]" if settings else self.variant

    @property
    def status(self) -> str:
        """How the row was tuned: "untuned", or "tuned(N=8, 0123456789ab)" with the number of trials and the protocol's digest."""
        return f"tuned(N={self.tuning['trials']}, {self.tuning['digest']})" if self.tuning else "untuned"


def title_of(row: Row, rows: Iterable[Row]) -> str:
    """Return the row's variant, followed by its settings where several of the rows have that variant."""
    return row.variant if sum(other.variant == row.variant for other in rows) == 1 else row.name


@dataclass(frozen=True)
class Design:
    """Design of the test behind the verdicts of a table.

    Attributes:
        judgement: the verdicts, with the look at which they were reached.
        looks: planned looks; empty: there is one, over all seeds.
        margin: differences within it are equivalent; None: none is.
        pool: seed variances that the rows share; None where each difference has its own.
        detectable: minimal detectable difference with power .8, in units of the primary metric.
        fragility: least change that moves the first place; None where the metric has no finite bounds.
    """

    judgement: Judgement
    looks: tuple[int, ...]
    margin: float | None
    pool: Pool | None
    detectable: float
    fragility: Fragility | None = None


@dataclass(frozen=True)
class Matched:
    """Rewards at one KL.

    Attributes:
        budget: the KL in nats: the largest that three quarters of the variants, and the baseline, reach in every seed.
        rewards: {row: its reward there}, for the rows that reach it.
        differences: {row: its difference from the baseline there}.
    """

    budget: float
    rewards: dict[str, Estimate]
    differences: dict[str, statistics.Comparison]


@dataclass(frozen=True)
class FixedLength:
    """Diversity of samples that are cut to one length.

    Attributes:
        n: order of the n-grams.
        words: length of the texts after cutting.
        prompts: number of prompts whose samples have so many words in every row and seed.
        distinct: {row: unique / all n-grams over all its texts, mean and sd over seeds}.
    """

    n: int
    words: int
    prompts: int
    distinct: dict[str, Spread]


@dataclass
class Leaderboard:
    """A table of variants, and the notes under it. Rows without a rank come first: reference, sft, then by name.

    Attributes:
        metrics: full names of the metrics, in the order of the columns.
        shared: what all runs have in common: digests of data, model and evaluation settings.
        primary_metric: the one metric that verdicts and ranks are about.
        design: design of the test; None where nothing is tested.
        descriptions: {metric: how it is read and shown}.
        tables: {run id: samples of the final evaluation point} of the cells that recorded them.
        recorded: the comparisons as they are recorded; empty for a board of cells alone.
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
    design: Design | None = None
    matched: Matched | None = None
    fixed_length: FixedLength | None = None
    components: pd.Series | None = None
    descriptions: dict[str, Metric] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)
    recorded: list[Comparison] = field(default_factory=list, repr=False)

    def title(self, row: Row) -> str:
        """Return the row's variant, followed by its settings where several rows have that variant."""
        return title_of(row, self.rows)

    @property
    def sample_metrics(self) -> list[str]:
        """The metrics that belong to no evaluation's section."""
        return [name for name in self.metrics if not any(name in section.metrics for section in self.sections)]

    def is_hidden(self, name: str) -> bool:
        """Return whether the metric comes from a judge that is no better than chance."""
        return any(name in section.metrics and section.is_hidden(name) for section in self.sections)
