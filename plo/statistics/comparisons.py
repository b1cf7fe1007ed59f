"""Differences between rows of a table, tested with pooled seed variances and corrected for their number."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from plo.statistics.contrasts import contrast
from plo.statistics.intervals import (
    Array,
    Estimate,
    RunNoise,
    StatisticsError,
    Table,
    complete,
    critical,
    p_value,
    paired,
    two_way,
)
from plo.statistics.moderated import Pool, pool

LEVEL = 0.95
Pair = tuple[str, str]


@dataclass(frozen=True)
class Comparison(Estimate):
    """Difference between two rows, the first minus the second, with its standard error and test.

    Attributes:
        degrees: degrees of freedom of the seeds' part of the variance, with one seed of a judge's; NaN: there is none.
        p_holm: p after Holm's correction for all differences tested together; NaN where p is.
        pooled: True if seed variances are shared by all rows, as with 5 rows or more.
    """

    degrees: float = math.nan
    p_holm: float = math.nan
    pooled: bool = False

    def two_sided(self, distance: float) -> float:
        """Return the two-sided p-value of a deviation of this size, with this comparison's standard error."""
        seeds = 1.0 if math.isnan(self.degrees) else self.degrees + 1
        return float(p_value(distance / self.se, self.share, max(self.prompts, 2), seeds))


def compare(
    tables: Mapping[str, Table],
    baseline: str,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    apart: Collection[str] = (),
    noise: RunNoise = RunNoise(),  # noqa: B008
) -> dict[str, Comparison]:
    """Return the difference of each row from the row `baseline`; together they are one family for Holm's correction.

    See `compare_pairs`, which explains the test, its arguments and its errors.
    """
    pairs = [(name, baseline) for name in tables if name != baseline]
    found = compare_pairs(tables, pairs, bounds=bounds, apart=apart, noise=noise)
    return {name: one for (name, _), one in found.items()}


def compare_pairs(
    tables: Mapping[str, Table],
    pairs: Iterable[Pair],
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    apart: Collection[str] = (),
    noise: RunNoise = RunNoise(),  # noqa: B008
) -> dict[Pair, Comparison]:
    """Return the difference between the rows of each pair; together they are one family for Holm's correction.

    With 5 rows or more, all with the same S seeds and P prompts,

        SE^2(a - b) = (v~_a + v~_b) / S + max(MS_p - MS_ps, 0) / (P S),

    where v~ are the moderated seed variances of `moderated.pool` and MS_p, MS_ps mean squares of the paired differences.
    The seeds' part has min(d0 + S - 1, (L - 1 - rho)(S - 1)) degrees of freedom; `critical` joins both parts. Seeds that only
    one of the two rows has are used with the weights of `contrasts.contrast`. With fewer rows the test is that of
    `estimate` on the paired differences, which leaves unpaired seeds out.

    Args:
        tables: for each row its values [prompts, seeds], as for `estimate`. A table with a single row (only seed means,
            such as a training metric) is tested over seeds alone. Prompts that one of a pair lacks are left out there.
        bounds: least and greatest possible value of the metric; intervals are cut to the range of its differences.
        apart: rows that do not share seed variances, because no seed effect reaches them (the untrained reference). Their
            differences are tested as with fewer rows.
        noise: noise of each row's seed means, such as that of a run of a judge; see `RunNoise`.

    Raises:
        StatisticsError: two rows have no prompt in common or, where variances are not shared, no seed.
    """
    pooled = pool({name: table for name, table in tables.items() if name not in apart})
    width = bounds[1] - bounds[0]
    kept = {name: complete(table) for name, table in tables.items()}
    found = {(a, b): _compare(a, b, tables, kept, pooled, width, noise) for a, b in pairs}
    adjusted = holm(one.p for one in found.values())
    return {pair: replace(one, p_holm=p) for (pair, one), p in zip(found.items(), adjusted, strict=True)}


def holm(p: Iterable[float]) -> list[float]:
    """Return Holm's step-down adjusted p: of the k-th smallest of n, max over j <= k of (n - j + 1) p_(j), at most 1.

    Rejecting those with adjusted p < alpha, the probability of any false rejection among the n is at most alpha. NaN is no
    test: it stays NaN and does not count.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    values = np.asarray(list(p), dtype=float)
    order = [place for place in np.argsort(values) if not np.isnan(values[place])]
    adjusted = values.copy()
    adjusted[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)))
    return adjusted.tolist()


def _compare(
    a: str,
    b: str,
    tables: Mapping[str, Table],
    kept: Mapping[str, pd.DataFrame],
    pooled: Pool | None,
    width: float,
    noise: RunNoise,
) -> Comparison:
    shared = pooled if pooled and a in pooled.variances and b in pooled.variances else None
    if shared is None:
        return _own_variance(paired(tables[a], tables[b]), width, noise)
    left, right = kept[a], kept[b]
    both = left.index.intersection(right.index)
    if both.empty:
        raise StatisticsError(f"{a} and {b} have no prompt in common with a value in every seed of both.")
    dropped = max(len(left), len(right)) - len(both)
    left, right = left.reindex(both), right.reindex(both)
    seeds = [seed for seed in left if seed in right]
    y: list[Array] = [
        frame.to_numpy(dtype=float)
        for frame in (left[seeds], right[seeds], left.drop(columns=seeds), right.drop(columns=seeds))
    ]
    counts = len(seeds), y[2].shape[1], y[3].shape[1]
    weights, variance_of_seeds = contrast(counts, shared.variances[a], shared.variances[b], shared.common)
    by_item = sum((w * one.mean(1) for w, one in zip(weights, y, strict=True) if one.shape[1]), np.zeros(len(both)))
    of_seeds, mean = float(variance_of_seeds), float(by_item.mean())
    variance = of_seeds + (_of_prompts(y[0] - y[1]) if seeds else _of_prompts(by_item[:, None]))
    if variance <= 0 or (len(both) > 1 and mean != 0 and np.ptp(by_item) <= 1e-12 * abs(mean)):
        variance = math.nan  # as in `two_way`: what never varies does not show how far it may be from the truth
    free = min(shared.degrees[a], shared.degrees[b], shared.residual)
    seeds_used = min(left.shape[1], right.shape[1])
    return _comparison(mean, variance, of_seeds / variance, len(both), seeds_used, dropped, free, width, True)


def _own_variance(table: pd.DataFrame, width: float, noise: RunNoise) -> Comparison:
    """Return the comparison from the variance of these paired differences [prompts, seeds] alone."""
    kept = complete(table)
    values, dropped = kept.to_numpy(dtype=float), len(table) - len(kept)
    prompts, seeds = values.shape
    if not prompts:
        return _comparison(math.nan, math.nan, math.nan, 0, seeds, dropped, math.nan, width, False)
    mean, se, share = map(float, two_way(values))
    if prompts == 1 and seeds > 1 and np.ptp(values) > 0:  # seed means
        se, share = float(values.std(ddof=1)) / math.sqrt(seeds), 1.0
    se, share, counted = noise.added_to(se, share, seeds, rows=2)
    free = counted - 1 if counted > 1 else math.nan
    return _comparison(mean, se**2, share, prompts, seeds, dropped, free, width, False)


def _of_prompts(gaps: Array) -> float:
    """Return max(MS_p - MS_ps, 0) / (P S) of paired differences [prompts, seeds]; MS_p / P with one seed, 0 with one prompt."""
    prompts, seeds = gaps.shape
    if prompts < 2:
        return 0.0
    ms_p = seeds * float(gaps.mean(1).var(ddof=1))
    rest = gaps - gaps.mean(1, keepdims=True) - gaps.mean(0) + gaps.mean()
    ms_ps = float((rest**2).sum()) / ((prompts - 1) * (seeds - 1)) if seeds > 1 else 0.0
    return max(ms_p - ms_ps, 0.0) / (prompts * seeds)


def _comparison(
    mean: float,
    variance: float,
    share: float,
    prompts: int,
    seeds: int,
    dropped: int,
    free: float,
    width: float,
    pooled: bool,
) -> Comparison:
    nan, se = math.nan, math.sqrt(variance)
    one = Comparison(mean, se, share, nan, nan, nan, prompts, seeds, dropped, free, nan, pooled)
    if math.isnan(se):
        return one
    half = se * float(critical(1 - LEVEL, share, max(prompts, 2), 1.0 if math.isnan(free) else free + 1))
    low, high = (float(np.clip(end, -width, width)) for end in (mean - half, mean + half))
    return replace(one, low=low, high=high, p=one.two_sided(mean))
