"""Mean of a table of prompts and seeds, with an interval for new prompts and new seeds."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special, stats

from plo.errors import PloError

Array = npt.NDArray[np.float64]
Table = pd.DataFrame | pd.Series  # indexed by prompt_id, a column per seed
LEAST_P = 1e-12  # smaller p-values are reported as this one


class StatisticsError(PloError, ValueError):
    """Numbers from which no interval or rating can be computed. The message says what they lack."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (ddof 1; NaN for one seed) over `n` seeds."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and seeds, in the units of the metric.

    Attributes:
        se: standard error of the mean. With one prompt, or where no two values differ, it is NaN, as are share, low, high
            and p.
        share: share of the variance that is estimated from the seeds, of which there are few; with one seed, from the
            repeats of a judge.
        low, high: interval for a new seed and a new prompt or, with one seed, for a new prompt alone; cut to the metric's
            bounds if those are given. It contains the noise of a judge: the values are for another run of it, too.
        p: two-sided p-value of the hypothesis that the mean is 0.
        prompts, seeds: numbers of prompts and seeds in the mean.
        dropped: number of prompts left out because a seed lacks them.
    """

    mean: float
    se: float
    share: float
    low: float
    high: float
    p: float
    prompts: int
    seeds: int
    dropped: int = 0


class RunNoise(NamedTuple):
    """Noise of a seed's mean that the spread of its prompts does not show, such as that of a run of a judge.

    Attributes:
        variance: in squared units of the metric. Between seeds it is part of their spread, so it is added where there is one.
        degrees: degrees of freedom of its estimate.
    """

    variance: float = 0.0
    degrees: float = math.inf

    def added_to(self, se: float, share: float, seeds: int, rows: int = 1) -> tuple[float, float, float]:
        """Return standard error, share and number of seeds for `critical`, with the noise of so many rows added to one seed."""
        if seeds > 1 or not self.variance or math.isnan(se):
            return se, share, seeds
        variance = se**2 + rows * self.variance
        return math.sqrt(variance), rows * self.variance / variance, 1 + self.degrees


def spread(values: Iterable[float]) -> Spread:
    """Return the mean and sample standard deviation of one number per seed.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        Spread(mean=2.0, sd=1.0, n=3)
    """
    array = np.asarray(list(values), dtype=float)
    n = len(array)
    return Spread(float(array.mean()) if n else math.nan, float(array.std(ddof=1)) if n > 1 else math.nan, n)


def two_way(values: Array) -> tuple[Array, Array, Array]:
    """Return the mean over crossed random prompts and seeds, its standard error, and the seeds' share of its variance.

    y_ps = m + a_p + b_s + e_ps, all random. With the mean squares of the two-way analysis of variance,

        SE^2 = (MS_s + max(MS_p - MS_ps, 0)) / (P S),    share = MS_s / (P S SE^2).

    With one seed it is the variance among prompts alone, and the share is 0. The same holds, with the larger of MS_p and
    MS_ps, where the seeds agree exactly and nothing else is left.

    Args:
        values: [..., prompts, seeds], no cell missing.

    Returns:
        mean, standard error and share, each [...]. With one prompt, and where all values are equal, the last two are NaN:
        20 wins of 20 do not show how far the rate of wins may be from 1.

    Source: Searle, Casella, McCulloch, Variance Components (1992), ch. 4, for the mean squares.
    """
    prompts, seeds = values.shape[-2:]
    mean = values.mean((-2, -1))
    if prompts < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    constant = np.ptp(values, (-2, -1)) <= 1e-12 * np.abs(values).max((-2, -1))  # up to rounding
    ms_p = seeds * values.mean(-1).var(-1, ddof=1)
    if seeds == 1:
        return mean, np.where(constant, np.nan, np.sqrt(ms_p / prompts)), np.where(constant, np.nan, 0.0)
    ms_s = prompts * values.mean(-2).var(-1, ddof=1)
    rest = values.var((-2, -1)) * prompts * seeds - (prompts - 1) * ms_p - (seeds - 1) * ms_s
    ms_ps = np.maximum(rest, 0) / ((prompts - 1) * (seeds - 1))
    variance: Array = ms_s + np.maximum(ms_p - ms_ps, 0)
    nothing = variance <= 1e-12 * (ms_p + ms_ps)
    variance = np.where(nothing, np.maximum(ms_p, ms_ps), variance)
    share = np.where(nothing, 0, ms_s) / np.where(constant, 1, variance)
    se = np.sqrt(variance / (prompts * seeds))
    return mean, np.where(constant, np.nan, se), np.where(constant, np.nan, share)


def critical(alpha: float | Array, share: float | Array, prompts: int, seeds: float | Array) -> Array:
    """Return the two-sided critical value c of |mean| / SE at level alpha, for `two_way`'s SE and share.

        c^2 = T_{P-1}^2 + (T_{S-1}^2 - T_{P-1}^2) share^1.5,    T_df the 1 - alpha/2 quantile of Student's t.

    It is exact where all variance comes from prompts (share 0) or from seeds (1). In between, Satterthwaite's t is too short
    when a few seeds agree by chance, above all in the tails that Holm's correction reads; docs/decisions.md has the simulation.

    Args:
        seeds: S, or 1 + the degrees of freedom of a seed variance that several rows share.
    """
    among_prompts = stats.t.isf(np.asarray(alpha) / 2, prompts - 1) ** 2
    if np.ndim(seeds) == 0 and seeds == 1:
        return np.sqrt(among_prompts + 0 * share)
    among_seeds = stats.t.isf(np.asarray(alpha) / 2, np.asarray(seeds) - 1) ** 2
    return np.sqrt(among_prompts + (among_seeds - among_prompts) * share**1.5)


def p_value(ratio: float | Array, share: float | Array, prompts: int, seeds: float | Array) -> Array:
    """Return the alpha at which `critical` is |ratio|, at least 1e-12; NaN for NaN.

    With one seed it is Student's: 2 P(T_{P-1} > |ratio|). Otherwise c^2 lies between the squares of two Student quantiles, and
    alpha between their two-sided p-values, where bisection finds it up to rounding.

    Args:
        seeds: S, or 1 + the degrees of freedom of a seed variance that several rows share, an array or a number.
    """
    ratio, share = np.broadcast_arrays(np.abs(np.asarray(ratio, dtype=float)), np.asarray(share, dtype=float))
    among_prompts = 2 * special.stdtr(prompts - 1, -ratio)
    if np.ndim(seeds) == 0 and seeds == 1:
        return np.maximum(among_prompts, LEAST_P)
    free = np.asarray(seeds) - 1
    among_seeds, weight = 2 * special.stdtr(free, -ratio), share**1.5
    low = np.log(np.maximum(np.minimum(among_prompts, among_seeds), LEAST_P))
    high = np.log(np.maximum(np.maximum(among_prompts, among_seeds), LEAST_P))
    for _ in range(50):
        middle = (low + high) / 2
        tail = np.exp(middle) / 2  # scipy.stats.t.isf, without its 0.1 ms of checks
        squares = [special.stdtrit(degrees, tail) ** 2 for degrees in (prompts - 1, free)]
        accepted = (1 - weight) * squares[0] + weight * squares[1] > ratio**2
        low, high = np.where(accepted, middle, low), np.where(accepted, high, middle)
    return np.where(np.isnan(ratio + share), np.nan, np.exp(high))


def estimate(
    table: Table,
    *,
    level: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    noise: RunNoise = RunNoise(),  # noqa: B008
) -> Estimate:
    """Return mean and interval of a table with one value per prompt and seed; see `two_way` and `critical`.

    Args:
        table: indexed by prompt_id, with one column per seed (a Series: one seed). Where the index repeats a prompt (one row
            per sample) it is averaged by prompt first. A prompt without a finite value in every seed is dropped and counted.
        bounds: least and greatest possible value of the mean, (0, 1) for a rate; the interval is cut to them.
        noise: noise of a seed's mean, added where there is one seed.
    """
    kept = complete(table)
    (prompts, seeds), dropped = kept.shape, len(by_prompt(table)) - len(kept)
    if not prompts or not seeds:
        nan = math.nan
        return Estimate(nan, nan, nan, nan, nan, nan, prompts, seeds, dropped)
    mean, se, share = map(float, two_way(kept.to_numpy(dtype=float)))
    se, share, free = noise.added_to(se, share, seeds)
    half = se * float(critical(1 - level, share, prompts, free))
    low, high = (float(np.clip(end, *bounds)) for end in (mean - half, mean + half))
    p = float(p_value(mean / se, share, prompts, free))
    return Estimate(mean, se, share, low, high, p, prompts, seeds, dropped)


def paired(a: Table, b: Table) -> pd.DataFrame:
    """Return a - b by prompt and seed, [prompts, seeds], prompts sorted; NaN for a prompt that either lacks.

    Args:
        a, b: tables as for `estimate`, paired by the seeds (columns) that both have, so that what two losses owe to the same
            seed, such as the order of the data, cancels.

    Raises:
        StatisticsError: no seed or no prompt is common to both.
    """
    a, b = by_prompt(a), by_prompt(b)
    seeds = [seed for seed in a if seed in b]
    if not seeds or a.index.intersection(b.index).empty:
        lacking, values = ("seed", [list(a), list(b)]) if not seeds else ("prompt", [list(a.index), list(b.index)])
        shown = " and ".join(str(v[:5]) for v in values)
        raise StatisticsError(
            f"The two tables have no {lacking} in common: {shown}. Only common prompts and seeds can be compared."
        )
    return a[seeds] - b[seeds]


def complete(values: Table) -> pd.DataFrame:
    """Return means over the samples of a prompt, [prompts, seeds], for the prompts with a finite value in every seed."""
    table = by_prompt(values)
    return table.iloc[np.flatnonzero(np.isfinite(table.to_numpy(dtype=float)).all(axis=1))]


def by_prompt(values: Table) -> pd.DataFrame:
    """Return means over the samples of a prompt, [prompts, seeds]; NaN where one of the samples is NaN."""
    frame = (values.to_frame(0) if isinstance(values, pd.Series) else values).astype(float)
    if frame.index.is_unique:  # means already: grouping them again is most of the time of a large table
        return frame if frame.index.is_monotonic_increasing else frame.sort_index()
    return frame.groupby(level=0, sort=True).mean(skipna=False)
