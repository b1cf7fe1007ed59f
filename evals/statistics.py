"""Uncertainty of a comparison, prompts and seeds told apart: intervals over prompts, spreads over seeds."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats


@dataclass(frozen=True)
class Spread:
    """Mean over seeds and sd over seeds (ddof 1; NaN for one seed) of `n` seeds."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean difference over `prompts` prompts and its interval [low, high] (NaN if there is one prompt)."""

    mean: float
    low: float
    high: float
    prompts: int


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


def paired_difference(
    a: pd.Series | pd.DataFrame, b: pd.Series | pd.DataFrame, *, level: float = 0.95, resamples: int = 9999
) -> Difference:
    """Prompt-clustered bootstrap interval of mean(a - b), paired by prompt.

    d_p = mean over a's seeds and samples of prompt p - that of b; the interval is the percentile bootstrap
    of mean_p d_p with whole prompts drawn again. It holds for these trained models on prompts like these: the
    spread over seeds is another number and stands beside it. The random state is fixed, so comparisons on
    the same prompts draw the same prompts, and a table made again is the same table.

    Args:
        a, b: one value a prompt: a Series indexed by prompt_id, or a frame with one column a seed. An index
            that repeats a prompt (one row a sample) is averaged by prompt first. Units: those of the metric.

    Raises:
        ValueError: the two do not hold the same prompts.
    """
    a, b = _by_prompt(a), _by_prompt(b)
    if not a.index.equals(b.index):
        odd = sorted(a.index.symmetric_difference(b.index))
        raise ValueError(f"{len(odd)} prompts are in only one of the two, first prompt_id {odd[0]}.")
    differences = (a - b).to_numpy()
    mean, n = float(differences.mean()), len(differences)
    if n < 2 or not np.isfinite(differences).all():
        return Difference(mean, float("nan"), float("nan"), n)
    if np.ptp(differences) == 0:  # nothing varies: scipy would warn of a degenerate distribution
        return Difference(mean, mean, mean, n)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = stats.bootstrap(
            (differences,), np.mean, confidence_level=level, n_resamples=resamples, method="percentile",
            batch=max(1, 2_000_000 // n), rng=np.random.default_rng(0),
        )  # fmt: skip
    return Difference(mean, float(result.confidence_interval.low), float(result.confidence_interval.high), n)


def _by_prompt(values: pd.Series | pd.DataFrame) -> pd.Series:
    """One number a prompt, sorted by prompt: mean over samples within a seed, then over seeds."""
    by_seed = values.groupby(level=0, sort=True).mean()
    return by_seed.mean(axis=1) if isinstance(by_seed, pd.DataFrame) else by_seed
