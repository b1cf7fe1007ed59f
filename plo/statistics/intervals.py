"""The mean of a table of prompts and seeds, and how far it may lie from that of new prompts and new seeds."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from plo.errors import PloError


class StatisticsError(PloError, ValueError):
    """Numbers that no interval or rating can be made of. The message says what they lack."""


@dataclass(frozen=True)
class Spread:
    """Mean over seeds and sd over seeds (ddof 1; NaN for one seed) of `n` seeds."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and seeds, in the units of the metric.

    Attributes:
        se: its standard error; NaN, and so are share, low, high and p, of one prompt and where no two values differ.
        share: of its variance, the part that is estimated from the seeds, and so from few.
        low, high: the interval; for a new seed and a new prompt, or, of one seed, for a new prompt alone. Cut to the
            metric's bounds where those were given.
        p: two-sided, of the hypothesis that the mean is 0.
        prompts, seeds: what it was computed from.
        dropped: prompts left out because a seed lacks them.
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


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation of one number a seed.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        Spread(mean=2.0, sd=1.0, n=3)
    """
    values = np.asarray(list(values), dtype=float)
    n = len(values)
    mean = float(values.mean()) if n else float("nan")
    return Spread(mean, float(values.std(ddof=1)) if n > 1 else float("nan"), n)


def two_way(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of crossed random prompts and seeds, its standard error, and the seeds' share of its variance.

    y_ps = m + a_p + b_s + e_ps, all random. With the mean squares of the two-way analysis of variance,

        SE^2 = (MS_s + max(MS_p - MS_ps, 0)) / (P S),    share = MS_s / (P S SE^2).

    One seed: the variance among prompts alone, share 0. So too, with the larger of MS_p and MS_ps, where the seeds agree
    exactly and nothing else is left.

    Args:
        values: [..., prompts, seeds], no cell missing.

    Returns:
        mean, standard error and share, each [...]. Of one prompt, and where all values are equal, the last two are NaN:
        20 wins of 20 do not tell how far the rate of wins may lie from 1.

    Source: Searle, Casella, McCulloch, Variance Components (1992), ch. 4, for the mean squares.
    """
    prompts, seeds = values.shape[-2:]
    mean = values.mean((-2, -1))
    if prompts < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    constant = np.ptp(values, (-2, -1)) <= 1e-12 * np.abs(values).max((-2, -1))  # but for rounding
    ms_p = seeds * values.mean(-1).var(-1, ddof=1)
    if seeds == 1:
        return mean, np.where(constant, np.nan, np.sqrt(ms_p / prompts)), np.where(constant, np.nan, 0.0)
    ms_s = prompts * values.mean(-2).var(-1, ddof=1)
    rest = values.var((-2, -1)) * prompts * seeds - (prompts - 1) * ms_p - (seeds - 1) * ms_s
    ms_ps = np.maximum(rest, 0) / ((prompts - 1) * (seeds - 1))
    variance = ms_s + np.maximum(ms_p - ms_ps, 0)
    nothing = variance <= 1e-12 * (ms_p + ms_ps)
    variance = np.where(nothing, np.maximum(ms_p, ms_ps), variance)
    share = np.where(nothing, 0, ms_s) / np.where(constant, 1, variance)
    se = np.sqrt(variance / (prompts * seeds))
    return mean, np.where(constant, np.nan, se), np.where(constant, np.nan, share)


def critical(alpha: float | np.ndarray, share: float | np.ndarray, prompts: int, seeds: int) -> np.ndarray:
    """Two-sided critical value c of |mean| / SE at level alpha, of a mean with `two_way`'s SE and share.

        c^2 = T_{P-1}^2 + (T_{S-1}^2 - T_{P-1}^2) share^1.5,    T_df the 1 - alpha/2 quantile of Student's t.

    Exact where the variance is all prompts' (share 0) or all seeds' (1). Between, Satterthwaite's t is too short when a few
    seeds by chance agree, and the more so in the tails that Holm's correction reads: docs/decisions.md has the simulation.
    """
    among_prompts = stats.t.isf(np.asarray(alpha) / 2, prompts - 1) ** 2
    if seeds == 1:
        return np.sqrt(among_prompts + 0 * share)
    among_seeds = stats.t.isf(np.asarray(alpha) / 2, seeds - 1) ** 2
    return np.sqrt(among_prompts + (among_seeds - among_prompts) * share**1.5)


def p_value(ratio: float | np.ndarray, share: float | np.ndarray, prompts: int, seeds: int) -> np.ndarray:
    """The alpha at which `critical` is |ratio|, by bisection; no less than 1e-12. NaN in, NaN out."""
    ratio, share = np.abs(np.asarray(ratio, dtype=float)), np.asarray(share, dtype=float)
    low, high = np.full(ratio.shape, -12.0), np.zeros(ratio.shape)  # log10 alpha
    for _ in range(50):
        middle = (low + high) / 2
        rejected = critical(10**middle, share, prompts, seeds) < ratio
        low, high = np.where(rejected, low, middle), np.where(rejected, middle, high)
    return np.where(np.isnan(ratio), np.nan, 10**high)


def estimate(
    table: pd.Series | pd.DataFrame, *, level: float = 0.95, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """Mean and interval of a table of one value a prompt and seed; see `two_way` and `critical`.

    Args:
        table: indexed by prompt_id, one column a seed (a Series: one seed). An index that repeats a prompt (one row a
            sample) is averaged by prompt first. A prompt without a finite value in every seed is dropped and counted.
        bounds: the least and the greatest value that the mean can have, (0, 1) of a rate: the interval is cut to them.
    """
    table = _by_prompt(table)
    complete = table[np.isfinite(table).all(axis=1)]
    (prompts, seeds), dropped = complete.shape, len(table) - len(complete)
    if not prompts or not seeds:
        return Estimate(*[math.nan] * 6, prompts, seeds, dropped)
    mean, se, share = map(float, two_way(complete.to_numpy()))
    half = se * float(critical(1 - level, share, prompts, seeds))
    low, high = map(float, np.clip([mean - half, mean + half], *bounds))
    p = float(p_value(mean / se, share, prompts, seeds))
    return Estimate(mean, se, share, low, high, p, prompts, seeds, dropped)


def paired(a: pd.Series | pd.DataFrame, b: pd.Series | pd.DataFrame) -> pd.DataFrame:
    """a - b by prompt and seed, [prompts, seeds], prompts sorted; NaN for a prompt that either lacks.

    Args:
        a, b: as for `estimate`. They are paired by the seeds (columns) that both have: what two losses owe to the same
            seed, such as the order of the data, cancels.

    Raises:
        StatisticsError: no seed or no prompt is common to both.
    """
    a, b = _by_prompt(a), _by_prompt(b)
    seeds = [seed for seed in a if seed in b]
    if not seeds or a.index.intersection(b.index).empty:
        lacking, values = ("seed", [list(a), list(b)]) if not seeds else ("prompt", [list(a.index), list(b.index)])
        shown = " and ".join(str(v[:5]) for v in values)
        raise StatisticsError(
            f"The two have no {lacking} in common: {shown}. Only what both were asked can be compared."
        )
    return a[seeds] - b[seeds]


def _by_prompt(values: pd.Series | pd.DataFrame) -> pd.DataFrame:
    """Mean over the samples of a prompt, [prompts, seeds]; NaN where one of them is not a number."""
    frame = values.to_frame(0) if isinstance(values, pd.Series) else values
    return frame.astype(float).groupby(level=0, sort=True).mean(skipna=False)
