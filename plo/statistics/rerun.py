"""Equivalence of a comparison and its repetition: whether a row moved by less than other seeds would have moved it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from plo.statistics.comparisons import compare
from plo.statistics.intervals import critical
from plo.statistics.verdicts import equivalence_p

LEVEL = 0.05  # of both one-sided tests


@dataclass(frozen=True)
class Rerun:
    """Difference in a row's mean over seeds between a repetition and the recorded runs.

    Attributes:
        difference: mean of the repetition minus the recorded mean, over the seeds that both have.
        low, high: 90% interval of the difference for new seeds, the one that belongs to the equivalence test; NaN with one
            seed, or where all seeds moved by the same.
        margin: largest difference within seed noise; NaN where no row has two seeds.
        p: p-value of the equivalence test: of the hypothesis that the difference is larger than the margin.
        seeds: number of seeds in both.
    """

    difference: float
    low: float
    high: float
    margin: float
    p: float
    seeds: int

    @property
    def within_noise(self) -> bool:
        """True if the row did not move, or moved by less than the margin as both one-sided tests at .05 show."""
        return self.difference == self.low == self.high == 0 or self.p < LEVEL


def rerun(recorded: Mapping[str, Mapping[str, float]], again: Mapping[str, Mapping[str, float]]) -> dict[str, Rerun]:
    """Return what each row did when it was run again, {row: {seed: value}} in both.

    The margin is the largest difference that two runs of a row with S other seeds each would show in 95 of 100 cases:

        margin = T_{df} sqrt(2 s^2 / S),    s^2 the recorded variance over seeds, df its degrees of freedom,

    with s^2 pooled over the rows and T the .975 quantile of Student's t. Two one-sided tests (Schuirmann) compare with it the
    paired differences of a row, whose own variance over seeds is their standard error.
    """
    frames = {name: pd.Series(values, dtype=float) for name, values in recorded.items()}
    several = [one for one in frames.values() if len(one) > 1]
    free = sum(len(one) - 1 for one in several)
    variance = sum((len(one) - 1) * float(one.var()) for one in several) / free if free else math.nan
    found = dict[str, Rerun]()
    for name, before in frames.items():
        after = pd.Series(again.get(name, {}), dtype=float)
        seeds = [seed for seed in before.index if seed in after.index]
        if seeds:
            margin = float(stats.t.isf(0.025, free)) * math.sqrt(2 * variance / len(seeds)) if free else math.nan
            found[name] = _rerun(before[seeds], after[seeds], margin)
    return found


def _rerun(before: pd.Series, after: pd.Series, margin: float) -> Rerun:
    moved = after - before
    if (moved == 0).all():
        return Rerun(0.0, 0.0, 0.0, margin, 0.0, len(moved))
    tables = {name: one.to_frame().T for name, one in (("again", after), ("recorded", before))}
    tables = {name: table.set_axis([0]) for name, table in tables.items()}
    one = compare(tables, "recorded")["again"]
    if math.isnan(one.se):
        return Rerun(one.mean, math.nan, math.nan, margin, math.nan, len(moved))
    half = one.se * float(critical(2 * LEVEL, one.share, max(one.prompts, 2), one.degrees + 1))
    return Rerun(one.mean, one.mean - half, one.mean + half, margin, equivalence_p(one, margin), len(moved))
