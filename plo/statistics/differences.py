"""Differences to a baseline: paired, corrected for their number, and beside the smallest that could be found."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from plo.statistics.intervals import Estimate, critical, estimate, paired


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference to a baseline.

    Attributes:
        p_holm: p adjusted for the family of differences that it stands in; NaN where p is.
        detectable: the family's `minimal_detectable_difference`.
    """

    p_holm: float = float("nan")
    detectable: float = float("nan")

    @property
    def resolved(self) -> bool:
        """At least as large as the minimal detectable one, and significant at .05 after Holm.

        In simulations (1 and 5 differences, 3 and 5 seeds, 100 and 805 prompts) a true difference as large as the design's
        MDD is resolved in 52 to 62%, one 1.5 times as large in 88 to 96%, one twice as large in more than 97%.
        """
        return abs(self.mean) >= self.detectable and self.p_holm < 0.05


def differences(
    tables: Mapping[Any, pd.Series | pd.DataFrame],
    baseline: pd.Series | pd.DataFrame,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> dict[Any, Difference]:
    """The difference of each table to the baseline; all of them are one family for Holm's correction.

    Args:
        tables, baseline: as for `estimate`; paired by prompt and seed as `paired` does.
        bounds: the least and the greatest value that the metric can have; intervals are cut to what its differences can.

    Raises:
        ValueError: a table shares no seed or no prompt with the baseline.
    """
    width = bounds[1] - bounds[0]
    found = {name: estimate(paired(table, baseline), bounds=(-width, width)) for name, table in tables.items()}
    adjusted = holm([one.p for one in found.values()])
    detectable = minimal_detectable_difference(found.values())
    return {
        name: Difference(**vars(one), p_holm=p, detectable=detectable)
        for (name, one), p in zip(found.items(), adjusted, strict=True)
    }


def holm(p: Iterable[float]) -> list[float]:
    """Holm's step-down adjusted p: of the k-th smallest of n, max over j <= k of (n - j + 1) p_(j), at most 1.

    The chance of any false rejection among the n is at most alpha where those with adjusted p < alpha are rejected. NaN is no
    test: it stays and does not count.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    p = np.asarray(list(p), dtype=float)
    order = [place for place in np.argsort(p) if not np.isnan(p[place])]
    adjusted = p.copy()
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted.tolist()


def minimal_detectable_difference(found: Iterable[Estimate], *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true difference that this design finds with probability `power` after Holm's correction at its strictest.

    That is its first step: of a family of m differences each is tested at alpha / m, two-sided. The MDD is the smallest D with
    P(|D + SE_true z| > c SE) >= power, where SE and its critical value c at alpha / m move with the seeds' mean square as
    chi^2_{S-1} / (S-1): the exact form of (t_{1 - alpha/2m} + t_{power}) SE, which falls short of its power with few seeds.

    SE_true^2 and the seeds' part of it are not known: the means over the family stand for them, and so the result is an
    estimate itself. Of one difference and 3 seeds, 80% of the estimates are .35 to 1.5 times the design's MDD.

    Args:
        found: the family. One without a standard error is no test and does not count; one of a single seed counts in m alone
            where others have more.

    Returns:
        In the metric's units, for the fewest prompts and seeds of the family; NaN for an empty one.
    """
    usable = [one for one in found if np.isfinite(one.se)]
    if not usable:
        return float("nan")
    several = [one for one in usable if one.seeds > 1]
    tests, usable = (
        len(usable),
        several or usable,
    )  # one seed speaks of new prompts alone: its standard error is another's
    prompts, seeds = min(one.prompts for one in usable), min(one.seeds for one in usable)
    of_seeds = np.mean([one.share * one.se**2 for one in usable])
    of_prompts = np.mean([(1 - one.share) * one.se**2 for one in usable])
    true = np.sqrt(of_seeds + of_prompts)
    levels = (np.arange(400) + 0.5) / 400
    drawn = of_seeds * (stats.chi2.ppf(levels, seeds - 1) / (seeds - 1) if seeds > 1 else np.ones(400))
    threshold = critical(alpha / tests, drawn / (drawn + of_prompts), prompts, seeds) * np.sqrt(drawn + of_prompts)

    def lacking(difference: float) -> float:
        return power - np.mean(
            stats.norm.sf(threshold, difference, true) + stats.norm.cdf(-threshold, difference, true)
        )

    return float(optimize.brentq(lacking, 0, threshold.max() + 10 * true))
